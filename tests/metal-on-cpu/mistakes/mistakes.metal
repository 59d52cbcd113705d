// What kernels must not do. Each is found by the tests.
#include <metal_stdlib>
using namespace metal;

// threads read what others may not have written yet
kernel void mistake_no_barrier(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                               constant uint &count [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
    threadgroup float values[128];
    values[i] = x[i];
    y[i] = values[count - 1 - i];
}

kernel void mistake_divergent_barrier(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                      constant uint &count [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
    if (x[i] > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = simd_sum(float(count));
}

kernel void mistake_divergent_sum(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                  constant uint &count [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
    float sum = 0;
    if (i % 2 == 0) sum = simd_sum(x[i]);
    else sum = simd_max(float(count));
    y[i] = sum;
}

kernel void mistake_too_much_memory(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                    constant uint &count [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
    threadgroup float values[8193];
    values[i] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = values[count - 1 - i];
}

kernel void mistake_beyond_the_end(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                   constant uint &count [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
    if (i < count) y[i] = x[i + 1];
}

kernel void mistake_writes_what_it_reads(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                         constant uint &count [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
    device float *own = (device float *)x;
    if (i < count) y[i] = own[i] = 1;
}

kernel void mistake_uninitialised(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                  constant uint &count [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
    threadgroup float values[128];
    if (i + 1 < count) values[i] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < count) y[i] = values[i];
}

// right, as far as a call goes
kernel void shifted(device const float *x [[buffer(0)]], device float *y [[buffer(1)]], constant uint &count [[buffer(2)]],
                    uint i [[thread_index_in_threadgroup]]) {
    threadgroup float values[128];
    values[i] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < count) y[i] = values[count - 1 - i];
}
