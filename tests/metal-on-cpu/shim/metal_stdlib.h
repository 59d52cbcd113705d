// A stand-in for <metal_stdlib>, as much of it as the kernels use: Metal Shading Language Specification 3.2.
#pragma once
#include "thread.h"

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned long ulong;
typedef _Float16 half;

#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))

#define MSL_VECTORS(T)                                \
    typedef T T##2 __attribute__((ext_vector_type(2))); \
    typedef T T##3 __attribute__((ext_vector_type(3))); \
    typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_VECTORS(float)
MSL_VECTORS(half)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(uchar)
MSL_VECTORS(ushort)
MSL_VECTORS(ulong)

// Where a collective function is called.
#define MSL_HERE const char *file = __builtin_FILE(), uint line = __builtin_LINE()
#define MSL_COLLECTIVE __attribute__((noinline, convergent)) inline

namespace metal {

template <typename T, int N> using vec = T __attribute__((ext_vector_type(N)));

// Values of a vector; one of a scalar.
template <typename T> inline constexpr int lanes_of = 1;
#define MSL_LANES_OF(T)                       \
    template <> inline constexpr int lanes_of<T##2> = 2; \
    template <> inline constexpr int lanes_of<T##3> = 3; \
    template <> inline constexpr int lanes_of<T##4> = 4;
MSL_LANES_OF(float)
MSL_LANES_OF(half)
MSL_LANES_OF(int)
MSL_LANES_OF(uint)
MSL_LANES_OF(uchar)
MSL_LANES_OF(ushort)
MSL_LANES_OF(ulong)

template <typename T, int N, typename... A> inline vec<T, N> make(A... parts) {
    T all[16];
    int count = 0;
    auto put = [&](auto part) {
        if constexpr (lanes_of<decltype(part)> == 1) all[count++] = T(part);
        else
            for (int i = 0; i < lanes_of<decltype(part)>; i++) all[count++] = T(part[i]);
    };
    (put(parts), ...);
    vec<T, N> result;
    for (int i = 0; i < N; i++) result[i] = count == 1 ? all[0] : all[i];
    return result;
}

template <typename To, typename From> inline To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

#define MSL_MATH(name, builtin) \
    inline float name(float x) { return builtin(x); }
MSL_MATH(exp, __builtin_expf)
MSL_MATH(exp2, __builtin_exp2f)
MSL_MATH(log, __builtin_logf)
MSL_MATH(sqrt, __builtin_sqrtf)
MSL_MATH(sin, __builtin_sinf)
MSL_MATH(cos, __builtin_cosf)
MSL_MATH(tanh, __builtin_tanhf)
MSL_MATH(floor, __builtin_floorf)
MSL_MATH(fabs, __builtin_fabsf)
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float pow(float a, float b) { return __builtin_powf(a, b); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline uint popcount(uint x) { return uint(__builtin_popcount(x)); }

#define MSL_ORDERED(T)                                 \
    inline T max(T a, T b) { return a > b ? a : b; }   \
    inline T min(T a, T b) { return b < a ? b : a; }   \
    inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
MSL_ORDERED(int)
MSL_ORDERED(uint)
MSL_ORDERED(ushort)
MSL_ORDERED(ulong)
// the one that is a number, if only one is
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float clamp(float x, float low, float high) { return min(max(x, low), high); }
template <typename T> inline T select(T a, T b, bool c) { return c ? b : a; }

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

MSL_COLLECTIVE void threadgroup_barrier(mem_flags, MSL_HERE) { msl_threadgroup_barrier({file, line}); }

inline uint own_lane() { return msl_thread->thread_index_in_simdgroup[0]; }

// What the lanes of a SIMD-group have shown. That of a lane that did not come is undefined: it is all ones, a NaN.
template <typename T> struct Shown {
    const unsigned char *slots;
    uint active;

    bool came(uint lane) const { return lane < MSL_LANES && (active >> lane & 1) != 0; }
    T operator[](uint lane) const {
        T value;
        if (came(lane)) __builtin_memcpy(&value, slots + lane * MSL_SLOT, sizeof value);
        else __builtin_memset(&value, 0xff, sizeof value);
        return value;
    }
};

template <typename T> MSL_COLLECTIVE Shown<T> show(T value, const char *file, uint line) {
    static_assert(sizeof(T) <= MSL_SLOT, "a slot holds it");
    Shown<T> shown;
    shown.slots = msl_exchange(&value, sizeof value, {file, line}, &shown.active);
    return shown;
}

MSL_COLLECTIVE void simdgroup_barrier(mem_flags, MSL_HERE) { show(0, file, line); }

// All values that were shown, joined in pairs as a butterfly does.
template <typename T, typename Join> inline T reduce(Shown<T> shown, Join join) {
    T values[MSL_LANES];
    bool there[MSL_LANES];
    for (uint i = 0; i < MSL_LANES; i++) {
        there[i] = shown.came(i);
        values[i] = shown[i];
    }
    for (uint width = MSL_LANES / 2; width > 0; width /= 2)
        for (uint i = 0; i < width; i++) {
            uint other = i + width;
            if (there[other]) values[i] = there[i] ? join(values[i], values[other]) : values[other];
            there[i] = there[i] || there[other];
        }
    return values[0];
}

template <typename T> MSL_COLLECTIVE T simd_sum(T v, MSL_HERE) {
    return reduce(show(v, file, line), [](T a, T b) { return T(a + b); });
}
template <typename T> MSL_COLLECTIVE T simd_max(T v, MSL_HERE) {
    return reduce(show(v, file, line), [](T a, T b) { return max(a, b); });
}
template <typename T> MSL_COLLECTIVE T simd_min(T v, MSL_HERE) {
    return reduce(show(v, file, line), [](T a, T b) { return min(a, b); });
}
MSL_COLLECTIVE bool simd_any(bool v, MSL_HERE) {
    return reduce(show(v, file, line), [](bool a, bool b) { return a || b; });
}
MSL_COLLECTIVE bool simd_all(bool v, MSL_HERE) {
    return reduce(show(v, file, line), [](bool a, bool b) { return a && b; });
}
template <typename T> MSL_COLLECTIVE T simd_shuffle(T v, ushort lane, MSL_HERE) { return show(v, file, line)[lane]; }
template <typename T> MSL_COLLECTIVE T simd_shuffle_xor(T v, ushort mask, MSL_HERE) {
    return show(v, file, line)[own_lane() ^ mask];
}
template <typename T> MSL_COLLECTIVE T simd_shuffle_down(T v, ushort by, MSL_HERE) {
    return show(v, file, line)[own_lane() + by];
}
template <typename T> MSL_COLLECTIVE T simd_broadcast(T v, ushort lane, MSL_HERE) { return show(v, file, line)[lane]; }
template <typename T> MSL_COLLECTIVE T simd_broadcast_first(T v, MSL_HERE) {
    Shown<T> shown = show(v, file, line);
    return shown[uint(__builtin_ctz(shown.active))];
}

// 8 × 8 values, two neighbours of a row a lane, in the layout that Apple's GPUs have.
template <typename T, int Rows, int Columns> struct simdgroup_matrix {
    static_assert(Rows == 8 && Columns == 8, "there is no other");
    vec<T, 2> two;

    // NaN until something is written
    simdgroup_matrix() { __builtin_memset(&two, 0xff, sizeof two); }
    explicit simdgroup_matrix(T value) { two[0] = two[1] = value; }
    vec<T, 2> &thread_elements() { return two; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;

// The lane that has an element, and its place there.
inline uint lane_of(uint row, uint column) {
    return (row & 4) << 2 | (column & 4) << 1 | (row & 3) << 1 | (column & 2) >> 1;
}
inline void place_of(uint lane, uint &row, uint &column) {
    row = (lane >> 4 & 1) * 4 + (lane >> 1 & 3);
    column = (lane >> 3 & 1) * 4 + (lane & 1) * 2;
}

#ifdef MSL_ADDRESS_SPACES
#define MSL_EACH_SPACE(MAKE) MAKE(__attribute__((address_space(1)))) MAKE(__attribute__((address_space(3))))
#else
#define MSL_EACH_SPACE(MAKE) MAKE()
#endif
#define MSL_MOVES(SPACE)                                                                                             \
    template <typename T>                                                                                            \
    MSL_COLLECTIVE void simdgroup_load(simdgroup_matrix<T, 8, 8> &m, const SPACE T *from, ulong stride,              \
                                       ulong2 origin = 0, bool transposed = false, MSL_HERE) {                       \
        show(0, file, line);                                                                                         \
        uint row, column;                                                                                            \
        place_of(own_lane(), row, column);                                                                           \
        for (uint i = 0; i < 2; i++) {                                                                               \
            ulong r = transposed ? column + i : row, c = transposed ? row : column + i;                              \
            m.two[i] = from[(origin.y + r) * stride + origin.x + c];                                                 \
        }                                                                                                            \
    }                                                                                                                \
    template <typename T>                                                                                            \
    MSL_COLLECTIVE void simdgroup_store(simdgroup_matrix<T, 8, 8> m, SPACE T *to, ulong stride, ulong2 origin = 0,   \
                                        bool transposed = false, MSL_HERE) {                                         \
        show(0, file, line);                                                                                         \
        uint row, column;                                                                                            \
        place_of(own_lane(), row, column);                                                                           \
        for (uint i = 0; i < 2; i++) {                                                                               \
            ulong r = transposed ? column + i : row, c = transposed ? row : column + i;                              \
            to[(origin.y + r) * stride + origin.x + c] = m.two[i];                                                   \
        }                                                                                                            \
    }
MSL_EACH_SPACE(MSL_MOVES)

// d = a · b + c, every element's products added in the order of the columns of a.
template <typename T>
MSL_COLLECTIVE void simdgroup_multiply_accumulate(simdgroup_matrix<T, 8, 8> &d, simdgroup_matrix<T, 8, 8> a,
                                                  simdgroup_matrix<T, 8, 8> b, simdgroup_matrix<T, 8, 8> c, MSL_HERE) {
    struct Both {
        vec<T, 2> a, b;
    };
    Shown<Both> shown = show(Both{a.two, b.two}, file, line);
    uint row, column;
    place_of(own_lane(), row, column);
    for (uint i = 0; i < 2; i++) {
        float sum = float(c.two[i]);
        for (uint k = 0; k < 8; k++)
            sum = fma(float(shown[lane_of(row, k)].a[k & 1]), float(shown[lane_of(k, column)].b[i]), sum);
        d.two[i] = T(sum);
    }
}

enum memory_order { memory_order_relaxed };
template <typename T> struct atomic {
    T value;
};
typedef atomic<uint> atomic_uint;
#define MSL_ATOMICS(SPACE)                                                                            \
    inline uint atomic_load_explicit(const SPACE atomic_uint *a, memory_order) {                      \
        return __atomic_load_n(&a->value, __ATOMIC_RELAXED);                                          \
    }                                                                                                 \
    inline void atomic_store_explicit(SPACE atomic_uint *a, uint value, memory_order) {               \
        __atomic_store_n(&a->value, value, __ATOMIC_RELAXED);                                         \
    }                                                                                                 \
    inline uint atomic_fetch_add_explicit(SPACE atomic_uint *a, uint value, memory_order) {           \
        return __atomic_fetch_add(&a->value, value, __ATOMIC_RELAXED);                                \
    }
MSL_EACH_SPACE(MSL_ATOMICS)

} // namespace metal
