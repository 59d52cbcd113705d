// What all kernels share. Conventions: activations are f32 and row-major; buffers are bound in the order of the call, its
// params after them; a kernel writes every value of what it is said to write.
#include <metal_stdlib>
#include "params.h"
using namespace metal;

// Threads of a SIMD-group.
constant constexpr uint LANES = 32;
