// Matrices of 8 × 8 that a SIMD-group holds together, two values a lane.
#pragma once
#include "simdgroup.h"

namespace emulator {

// A lane holds [row][column] and [row][column + 1].
inline uint row_of(uint lane) { return (lane >> 4 & 1) * 4 + (lane >> 1 & 3); }
inline uint column_of(uint lane) { return (lane >> 3 & 1) * 4 + (lane & 1) * 2; }
inline uint lane_of(uint row, uint column) {
    return (row >> 2 & 1) << 4 | (column >> 2 & 1) << 3 | (row & 3) << 1 | (column >> 1 & 1);
}

} // namespace emulator

namespace metal {

// A lane's two values. Metal says only that they have an index: it is no vector of two there.
template <typename T> struct Elements {
    T values[2];

    T &operator[](uint at) { return values[at]; }
    const T &operator[](uint at) const { return values[at]; }
};

template <typename T, int Columns, int Rows> struct simdgroup_matrix {
    static_assert(Columns == 8 && Rows == 8, "there are 8 × 8 ones only");
    Elements<T> own;
    // NaN until something is loaded
    simdgroup_matrix() { __builtin_memset(&own, 0xff, sizeof own); }
    explicit simdgroup_matrix(T diagonal);
    Elements<T> &thread_elements() { return own; }
    const Elements<T> &thread_elements() const { return own; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int Columns, int Rows>
inline simdgroup_matrix<T, Columns, Rows>::simdgroup_matrix(T diagonal) {
    uint lane = emulator_host.lane();
    for (uint i = 0; i < 2; i++) own[i] = emulator::row_of(lane) == emulator::column_of(lane) + i ? diagonal : T(0);
}

template <typename T, int Columns, int Rows>
inline simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, Columns, Rows> filled;
    filled.own[0] = filled.own[1] = value;
    return filled;
}

#ifdef RACES
#define ACCESS(at, writes) emulator_host.access(at, sizeof(T), writes, __builtin_return_address(0))
#else
#define ACCESS(at, writes)
#endif
#define LOAD_AND_STORE(space) \
    template <typename T> \
    __attribute__((noinline)) inline void simdgroup_load(simdgroup_matrix<T, 8, 8> &to, const space T *from, ulong stride = 8, ulong2 origin = 0, \
                               bool transposed = false, SITE) { \
        emulator_host.exchange(nullptr, 0, 0, "simdgroup_load", HERE); \
        uint lane = emulator_host.lane(), row = emulator::row_of(lane), column = emulator::column_of(lane); \
        for (uint i = 0; i < 2; i++) { \
            uint y = transposed ? column + i : row, x = transposed ? row : column + i; \
            auto *at = from + (origin[1] + y) * stride + origin[0] + x; \
            ACCESS(at, false); \
            to.own[i] = *at; \
        } \
    } \
    template <typename T> \
    __attribute__((noinline)) inline void simdgroup_store(simdgroup_matrix<T, 8, 8> from, space T *to, ulong stride = 8, ulong2 origin = 0, \
                                bool transposed = false, SITE) { \
        emulator_host.exchange(nullptr, 0, 0, "simdgroup_store", HERE); \
        uint lane = emulator_host.lane(), row = emulator::row_of(lane), column = emulator::column_of(lane); \
        for (uint i = 0; i < 2; i++) { \
            uint y = transposed ? column + i : row, x = transposed ? row : column + i; \
            auto *at = to + (origin[1] + y) * stride + origin[0] + x; \
            ACCESS(at, true); \
            *at = from.own[i]; \
        } \
    }
#ifdef ADDRESS_SPACES
LOAD_AND_STORE(__attribute__((address_space(1))))
LOAD_AND_STORE(__attribute__((address_space(3))))
#else
LOAD_AND_STORE()
#endif
#undef LOAD_AND_STORE
#undef ACCESS

// d = a · b + c
template <typename D, typename A, typename B, typename C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                                          const simdgroup_matrix<B, 8, 8> &b, const simdgroup_matrix<C, 8, 8> &c, SITE) {
    struct Pair {
        Elements<A> a;
        Elements<B> b;
    };
    emulator::Lanes<Pair> lanes(Pair{a.own, b.own}, "simdgroup_multiply_accumulate", HERE);
    uint lane = emulator_host.lane(), row = emulator::row_of(lane), column = emulator::column_of(lane);
    float first = float(c.own[0]), second = float(c.own[1]);
    for (uint k = 0; k < 8; k++) {
        float left = float(lanes[emulator::lane_of(row, k)].a[k & 1]);
        Pair right = lanes[emulator::lane_of(k, column)];
        first = __builtin_fmaf(left, float(right.b[0]), first);
        second = __builtin_fmaf(left, float(right.b[1]), second);
    }
    d.own[0] = D(first);
    d.own[1] = D(second);
}
template <typename D, typename A, typename B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                               const simdgroup_matrix<B, 8, 8> &b, SITE) {
    simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), HERE);
}

} // namespace metal
