// The largest value of a row, and where it is: twin of src/backend/cpu/argmax.rs. Values are compared as whole numbers: nothing
// depends on what a compiler makes of a NaN, or of numbers so small that a GPU may take them for zero.
#include "common.h"

constant constexpr int INFINITE = 0x7f800000;
constant constexpr uint BELOW_ALL = 0xff800000;
// Of a NaN that a row begins with, which no value is larger than.
constant constexpr int NEVER_LEFT = 0x7fffffff;

inline int magnitude(uint bits) { return int(bits & 0x7fffffff); }

// In the order of the values; both zeros alike, and `of_nan` for a NaN.
inline int height(uint bits, int of_nan) {
    int size = magnitude(bits);
    if (size > INFINITE) return of_nan;
    return bits >> 31 ? -size : size;
}

// `chunk` columns of a row a SIMD-group, or those that are left. Threadgroups: chunks, rows from `row` on. Three words a chunk:
// the value, the column in the whole row, whether all are finite.
kernel void argmax(device const uint *x [[buffer(0)]], device uint *y [[buffer(1)]], constant ArgmaxParams &p [[buffer(2)]],
                   uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    device const uint *values = x + (ulong(p.row) + group.y) * p.width;
    uint start = group.x * p.chunk, end = min(start + p.chunk, p.width), column = start;
    int most = -INFINITE;
    bool finite = true;
    for (uint i = start + lane; i < end; i += LANES) {
        int own = height(values[i], p.first + i == 0 ? NEVER_LEFT : -INFINITE);
        finite = finite && magnitude(values[i]) < INFINITE;
        if (own > most) {
            most = own;
            column = i;
        }
    }
    int top = simd_max(most);
    column = simd_min(most == top ? column : end);
    finite = simd_all(finite);
    if (lane > 0) return;
    device uint *to = y + (ulong(group.y) * p.chunks + group.x) * 3;
    to[0] = top > -INFINITE ? values[column] : BELOW_ALL;
    to[1] = p.first + column;
    to[2] = finite ? 1 : 0;
}

// The chunks of a row become one. Threadgroups: rows, a SIMD-group each.
kernel void argmax_join(device const uint *chunks [[buffer(0)]], device uint *y [[buffer(1)]],
                        constant ArgmaxParams &p [[buffer(2)]], uint row [[threadgroup_position_in_grid]],
                        uint lane [[thread_index_in_simdgroup]]) {
    device const uint *own = chunks + ulong(row) * p.chunks * 3;
    uint place = 0;
    int most = -INFINITE;
    bool finite = true;
    for (uint i = lane; i < p.chunks; i += LANES) {
        int value = height(own[i * 3], NEVER_LEFT);
        finite = finite && own[i * 3 + 2] != 0;
        if (value > most) {
            most = value;
            place = i;
        }
    }
    int top = simd_max(most);
    place = simd_min(most == top ? place : p.chunks);
    finite = simd_all(finite);
    if (lane > 0) return;
    y[row * 3] = own[place * 3];
    y[row * 3 + 1] = own[place * 3 + 1];
    y[row * 3 + 2] = finite ? 1 : 0;
}
