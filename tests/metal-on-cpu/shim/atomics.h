// Atomics. Their orders are Metal's: all accesses are relaxed, fences order them.
#pragma once
#include "simdgroup.h"

namespace metal {

enum memory_order { memory_order_relaxed, memory_order_seq_cst };
// by Apple's numbers
enum thread_scope {
    thread_scope_thread = 0,
    thread_scope_threadgroup = 1,
    thread_scope_device = 2,
    thread_scope_system = 3,
    thread_scope_simdgroup = 4
};

template <typename T> struct atomic {
    T value;
};
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<ulong> atomic_ulong;
typedef atomic<bool> atomic_bool;
typedef atomic<float> atomic_float;

inline void atomic_thread_fence(mem_flags, memory_order, thread_scope scope = thread_scope_device) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (scope == thread_scope_system) emulator_host.fence();
}

// With address spaces they are only looked at, not compiled.
#ifdef ADDRESS_SPACES
#define ATOMICALLY(expression) return T()
#else
#define ATOMICALLY(expression) expression
#endif

#define FETCH(space, name) \
    template <typename T> \
    inline T atomic_fetch_##name##_explicit(volatile space atomic<T> *at, T by, memory_order) { \
        ATOMICALLY(return __atomic_fetch_##name(&at->value, by, __ATOMIC_RELAXED)); \
    }
#define ATOMICS(space) \
    template <typename T> inline T atomic_load_explicit(const volatile space atomic<T> *at, memory_order) { \
        ATOMICALLY(T value; __atomic_load(&at->value, &value, __ATOMIC_RELAXED); return value); \
    } \
    template <typename T> inline T emulator_store(volatile space atomic<T> *at, T value) { \
        ATOMICALLY(__atomic_store(&at->value, &value, __ATOMIC_RELAXED); return value); \
    } \
    template <typename T> inline void atomic_store_explicit(volatile space atomic<T> *at, T value, memory_order) { \
        emulator_store(at, value); \
    } \
    template <typename T> inline T atomic_exchange_explicit(volatile space atomic<T> *at, T value, memory_order) { \
        ATOMICALLY(T old; __atomic_exchange(&at->value, &value, &old, __ATOMIC_RELAXED); return old); \
    } \
    template <typename T> \
    inline T atomic_compare_exchange_weak_explicit(volatile space atomic<T> *at, T *expected, T value, memory_order, \
                                                   memory_order) { \
        ATOMICALLY(return __atomic_compare_exchange(&at->value, expected, &value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); \
    } \
    FETCH(space, add) FETCH(space, sub) FETCH(space, and) FETCH(space, or) FETCH(space, xor) FETCH(space, min) FETCH(space, max)
#ifdef ADDRESS_SPACES
ATOMICS(__attribute__((address_space(1))))
ATOMICS(__attribute__((address_space(3))))
#else
ATOMICS()
#endif
#undef ATOMICS
#undef FETCH
#undef ATOMICALLY

} // namespace metal
