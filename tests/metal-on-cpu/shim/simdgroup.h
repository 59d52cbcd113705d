// Barriers and the functions of a SIMD-group, by the emulator's host.
#pragma once
#include "types.h"

// Where in a kernel a function is called: filled in at the call.
#define SITE \
    const char *site_file = __builtin_FILE(), uint site_line = __builtin_LINE(), uint site_column = __builtin_COLUMN()
#define HERE site_file, site_line, site_column

namespace emulator {

// What the lanes of a SIMD-group have handed in. Whoever is first afterwards leaves what all want to know in `result`.
struct Exchange {
    alignas(64) uchar slots[32 * 32];
    alignas(16) uchar result[16];
    uint active;
    uint has_result;
};

// A thread of the grid.
struct Thread {
    uint position_in_group[3], group[3], threads[3], groups[3];
    uint index, lane, simdgroup, simdgroups;
    void *const *bound;
};

// What the emulator does for kernels.
struct Host {
    // waits for the lanes of the SIMD-group that run, each with `size` bytes at `value`; orders the memory of `flags`
    Exchange *(*exchange)(const void *value, uint size, uint flags, const char *what, const char *file, uint line, uint column);
    // waits for all threads of the threadgroup
    void (*barrier)(uint flags, const char *file, uint line, uint column);
    // memory of the threadgroup that all its threads know by `key`
    void *(*memory)(const void *key, uint size, uint align, const char *name);
    uint (*lane)();
    // where races are looked for: `code` reads or writes
    void (*access)(const void *at, uint size, bool writes, const void *code);
    // as `access`, of what is coherent with the host
    void (*coherent)(void *at, uint size, bool writes, const void *code);
    // a fence that reaches the host
    void (*fence)();
};
} // namespace emulator
extern "C" __attribute__((visibility("default"))) emulator::Host emulator_host;

namespace emulator {

// The values of all lanes.
template <typename T> struct Lanes {
    Exchange *from;
    Lanes(T value, const char *what, SITE) : from(emulator_host.exchange(&value, sizeof(T), 0, what, HERE)) {
        static_assert(sizeof(T) <= 32, "a slot has 32 bytes");
    }
    bool has(uint lane) const { return lane < 32 && (from->active >> lane & 1) != 0; }
    // what a lane hands over that does not run is undefined: here it is NaN
    T operator[](uint lane) const {
        T value;
        if (has(lane))
            __builtin_memcpy(&value, from->slots + lane * sizeof(T), sizeof(T));
        else
            __builtin_memset(&value, 0xff, sizeof(T));
        return value;
    }
    template <typename Fold> T folded(Fold fold) const {
        static_assert(sizeof(T) <= 16, "a result has 16 bytes");
        T value;
        if (from->has_result) {
            __builtin_memcpy(&value, from->result, sizeof(T));
            return value;
        }
        uint first = __builtin_ctz(from->active);
        value = (*this)[first];
        for (uint lane = first + 1; lane < 32; lane++)
            if (has(lane)) value = fold(value, (*this)[lane]);
        __builtin_memcpy(from->result, &value, sizeof(T));
        from->has_result = 1;
        return value;
    }
};

// Sums over the lanes before the own one.
template <typename T> inline T sum_before(const Lanes<T> &lanes, uint end) {
    T sum = 0;
    for (uint lane = 0; lane < end; lane++)
        if (lanes.has(lane)) sum = T(sum + lanes[lane]);
    return sum;
}
inline ulong ballot(bool value, const char *what, SITE) {
    Lanes<uint> lanes(value, what, HERE);
    ulong set = 0;
    for (uint lane = 0; lane < 32; lane++)
        if (lanes.has(lane) && lanes[lane] != 0) set |= 1ul << lane;
    return set;
}

} // namespace emulator

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

inline void threadgroup_barrier(mem_flags flags, SITE) { emulator_host.barrier(uint(flags), HERE); }
inline void simdgroup_barrier(mem_flags flags, SITE) {
    emulator_host.exchange(nullptr, 0, uint(flags), "simdgroup_barrier", HERE);
}

#define FOLD(name, expression) \
    template <typename T> inline T name(T value, SITE) { \
        return emulator::Lanes<T>(value, #name, HERE).folded([](T a, T b) { return T(expression); }); \
    }
FOLD(simd_sum, a + b)
FOLD(simd_product, a * b)
FOLD(simd_min, b < a ? b : a)
FOLD(simd_max, a < b ? b : a)
FOLD(simd_and, a & b)
FOLD(simd_or, a | b)
FOLD(simd_xor, a ^ b)
#undef FOLD

template <typename T> inline T simd_prefix_exclusive_sum(T value, SITE) {
    return emulator::sum_before(emulator::Lanes<T>(value, "simd_prefix_exclusive_sum", HERE), emulator_host.lane());
}
template <typename T> inline T simd_prefix_inclusive_sum(T value, SITE) {
    return emulator::sum_before(emulator::Lanes<T>(value, "simd_prefix_inclusive_sum", HERE), emulator_host.lane() + 1);
}

template <typename T> inline T simd_shuffle(T value, ushort lane, SITE) {
    return emulator::Lanes<T>(value, "simd_shuffle", HERE)[lane];
}
template <typename T> inline T simd_shuffle_xor(T value, ushort mask, SITE) {
    return emulator::Lanes<T>(value, "simd_shuffle_xor", HERE)[emulator_host.lane() ^ mask];
}
// lanes beyond the ends are undefined too
template <typename T> inline T simd_shuffle_down(T value, ushort by, SITE) {
    return emulator::Lanes<T>(value, "simd_shuffle_down", HERE)[emulator_host.lane() + by];
}
template <typename T> inline T simd_shuffle_up(T value, ushort by, SITE) {
    return emulator::Lanes<T>(value, "simd_shuffle_up", HERE)[emulator_host.lane() - by];
}
template <typename T> inline T simd_shuffle_rotate_down(T value, ushort by, SITE) {
    return emulator::Lanes<T>(value, "simd_shuffle_rotate_down", HERE)[(emulator_host.lane() + by) % 32];
}
template <typename T> inline T simd_broadcast(T value, ushort lane, SITE) {
    return emulator::Lanes<T>(value, "simd_broadcast", HERE)[lane];
}
template <typename T> inline T simd_broadcast_first(T value, SITE) {
    emulator::Lanes<T> lanes(value, "simd_broadcast_first", HERE);
    return lanes[__builtin_ctz(lanes.from->active)];
}
template <typename T> inline T quad_sum(T value, SITE) {
    emulator::Lanes<T> lanes(value, "quad_sum", HERE);
    T sum = 0;
    for (uint i = emulator_host.lane() & ~3u, end = i + 4; i < end; i++)
        if (lanes.has(i)) sum = T(sum + lanes[i]);
    return sum;
}

struct simd_vote {
    ulong lanes;
    explicit operator ulong() const { return lanes; }
    bool any() const { return lanes != 0; }
};
inline simd_vote simd_ballot(bool value, SITE) { return {emulator::ballot(value, "simd_ballot", HERE)}; }
inline bool simd_any(bool value, SITE) { return emulator::ballot(value, "simd_any", HERE) != 0; }
inline bool simd_all(bool value, SITE) { return emulator::ballot(!value, "simd_all", HERE) == 0; }
inline simd_vote simd_active_threads_mask(SITE) { return {emulator::ballot(true, "simd_active_threads_mask", HERE)}; }
inline bool simd_is_first(SITE) {
    return __builtin_ctzl(emulator::ballot(true, "simd_is_first", HERE)) == int(emulator_host.lane());
}

} // namespace metal
