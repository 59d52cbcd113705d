// What clang's thread sanitizer calls before every access: the emulator has its own idea of what a race is.
#pragma once
#include "simdgroup.h"

#define ACCESSES(size) \
    extern "C" void __tsan_read##size(void *at) { emulator_host.access(at, size, false, __builtin_return_address(0)); } \
    extern "C" void __tsan_write##size(void *at) { emulator_host.access(at, size, true, __builtin_return_address(0)); } \
    extern "C" void __tsan_unaligned_read##size(void *at) { \
        emulator_host.access(at, size, false, __builtin_return_address(0)); \
    } \
    extern "C" void __tsan_unaligned_write##size(void *at) { \
        emulator_host.access(at, size, true, __builtin_return_address(0)); \
    } \
    extern "C" void __tsan_read_write##size(void *at) { \
        emulator_host.access(at, size, true, __builtin_return_address(0)); \
    } \
    extern "C" void __tsan_unaligned_read_write##size(void *at) { \
        emulator_host.access(at, size, true, __builtin_return_address(0)); \
    }
#define COHERENT(size) \
    extern "C" void __tsan_volatile_read##size(void *at) { \
        emulator_host.coherent(at, size, false, __builtin_return_address(0)); \
    } \
    extern "C" void __tsan_volatile_write##size(void *at) { \
        emulator_host.coherent(at, size, true, __builtin_return_address(0)); \
    }
COHERENT(4)
#undef COHERENT
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
#undef ACCESSES

extern "C" void *__tsan_memset(void *to, int value, size_t size) {
    emulator_host.access(to, uint(size), true, __builtin_return_address(0));
    return __builtin_memset(to, value, size);
}
extern "C" void *__tsan_memcpy(void *to, const void *from, size_t size) {
    emulator_host.access(from, uint(size), false, __builtin_return_address(0));
    emulator_host.access(to, uint(size), true, __builtin_return_address(0));
    return __builtin_memcpy(to, from, size);
}
extern "C" void *__tsan_memmove(void *to, const void *from, size_t size) {
    emulator_host.access(from, uint(size), false, __builtin_return_address(0));
    emulator_host.access(to, uint(size), true, __builtin_return_address(0));
    return __builtin_memmove(to, from, size);
}

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
