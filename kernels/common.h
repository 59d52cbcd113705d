// What all kernels share. Conventions: activations are f32 and row-major; what is read is bound first, then what is written
// (or changed), then the params; a kernel writes every value of what it is said to write. Sums are f32, in an order that
// depends on the operands' shapes alone.
#include <metal_stdlib>
using namespace metal;

// (`metal` has an `address` of its own)
typedef device const uchar *device_address;
#include "params.h"

// Threads of a SIMD-group.
constant constexpr uint LANES = 32;

inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

inline float silu(float x) { return x * sigmoid(x); }
