// The fence at an all_reduce: partial sums go to the host and their sum comes back while later calls are queued already. Host
// side and protocol: src/backend/metal/fence/. Scopes that reach the host are nothing that Apple documents, so this file is
// compiled apart from the others.
#include "common.h"
#pragma METAL internals : enable

// Apple's newer compilers know the scope by this name, older ones by its number alone.
#ifndef __METAL_MEMORY_SCOPE_SYSTEM__
#define __METAL_MEMORY_SCOPE_SYSTEM__ 3
#endif
constant constexpr thread_scope SYSTEM = static_cast<thread_scope>(__METAL_MEMORY_SCOPE_SYSTEM__);

// Words that host and kernels share, a cache line each. Numbers count exchanges, have 31 bits and are never 0.
// The newest exchange whose partial sums are there: the device writes it.
constant constexpr uint SIGNALLED = 0;
// The newest exchange whose sum is there: the host writes it. Its highest bit: nothing more will come.
constant constexpr uint ANSWERED = 32;
// The exchange that a wait gave up, or 0: the device writes it, and the host takes it back when it asks again.
constant constexpr uint EXPIRED = 64;

// Threads of the wait's threadgroup.
constant constexpr uint WAITING = 128;

// Partial sums to where the host reads them. A thread a value.
kernel void fence_publish(device const float *partial [[buffer(0)]], volatile coherent(system) device float *landing [[buffer(1)]],
                          constant ShareParams &p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < p.count) landing[i] = partial[i];
    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, SYSTEM);
}

// Says that they are there; one thread. It is given them to stand behind them.
kernel void fence_signal(device const float *landing [[buffer(0)]], volatile coherent(system) device uint *words [[buffer(1)]],
                         constant SignalParams &p [[buffer(2)]]) {
    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, SYSTEM);
    words[SIGNALLED] = p.number;
    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, SYSTEM);
}

// Waits for a sum, but only so long; one threadgroup. The calls after it find in `counts` what they are `asked` for, or, if the
// sum has not come or an earlier wait has given up, zeros: then they do nothing, because what they would change (caches,
// recurrent states) is changed in place and they will be asked for again.
kernel void fence_wait(device const uint *asked [[buffer(0)]], volatile coherent(system) device uint *words [[buffer(1)]],
                       device uint *counts [[buffer(2)]], constant WaitParams &p [[buffer(3)]],
                       uint i [[thread_index_in_threadgroup]]) {
    threadgroup uint come;
    if (i == 0) {
        come = 0;
        bool waits = words[EXPIRED] == 0;
        for (uint look = 0; waits; look++) {
            atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, SYSTEM);
            uint answered = words[ANSWERED];
            // numbers go round, so that what matters is which is ahead
            come = answered >> 31 == 0 && int((answered - p.number) << 1) >= 0 ? 1 : 0;
            waits = answered >> 31 == 0 && come == 0 && look < p.looks;
        }
        if (come == 0 && words[EXPIRED] == 0) words[EXPIRED] = p.number;
        atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, SYSTEM);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint word = i; word < p.words; word += WAITING) counts[word] = come != 0 ? asked[word] : 0;
}

// The sum from where the host wrote it. A thread a value.
kernel void fence_take(volatile coherent(system) device const float *answer [[buffer(0)]], device float *sum [[buffer(1)]],
                       constant ShareParams &p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < p.count) sum[i] = answer[i];
}
