// Metal's functions of numbers. Scalars have one overload a type, so that mixed arguments are as ambiguous as they are in Metal.
#pragma once
#include "types.h"

namespace metal {

template <typename To, typename From> inline To as_type(From value) {
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
    return __builtin_bit_cast(To, value);
}

// Functions of integers and floats.
#define ORDERED(T) \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; } \
    inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
ORDERED(char)
ORDERED(uchar)
ORDERED(short)
ORDERED(ushort)
ORDERED(int)
ORDERED(uint)
ORDERED(long)
ORDERED(ulong)
#undef ORDERED

template <typename V, typename = enable_if_t<emulator::is_vector<V>>> inline V min(V a, V b) { return __builtin_elementwise_min(a, b); }
template <typename V, typename = enable_if_t<emulator::is_vector<V>>> inline V max(V a, V b) { return __builtin_elementwise_max(a, b); }
template <typename V, typename = enable_if_t<emulator::is_vector<V>>> inline V clamp(V x, V low, V high) {
    return min(max(x, low), high);
}

inline int abs(int x) { return x < 0 ? -x : x; }
inline long abs(long x) { return x < 0 ? -x : x; }

#define BITS_OF(T, unsigned_type) \
    inline T popcount(T x) { return T(__builtin_popcountl(ulong(unsigned_type(x)))); } \
    inline T clz(T x) { return T(x == 0 ? sizeof(T) * 8 : __builtin_clzl(ulong(unsigned_type(x))) - (64 - sizeof(T) * 8)); } \
    inline T ctz(T x) { return T(x == 0 ? sizeof(T) * 8 : __builtin_ctzl(ulong(unsigned_type(x)))); } \
    inline T rotate(T x, T by) { \
        uint bits = sizeof(T) * 8, n = uint(by) % bits; \
        return n == 0 ? x : T(unsigned_type(x) << n | unsigned_type(x) >> (bits - n)); \
    } \
    inline T extract_bits(T x, uint offset, uint bits) { return bits == 0 ? T(0) : T(T(x << (sizeof(T) * 8 - offset - bits)) >> (sizeof(T) * 8 - bits)); }
BITS_OF(uchar, uchar)
BITS_OF(ushort, ushort)
BITS_OF(int, uint)
BITS_OF(uint, uint)
BITS_OF(long, ulong)
BITS_OF(ulong, ulong)
#undef BITS_OF

inline uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
inline uint mulhi(uint a, uint b) { return uint(ulong(a) * b >> 32); }
inline int mulhi(int a, int b) { return int(long(a) * b >> 32); }

// Functions of floats: in half precision they are rounded once, from float.
#define OF_ONE(name, expression) \
    inline float name(float x) { return expression; } \
    inline half name(half h) { \
        float x = float(h); \
        return half(expression); \
    }
#define OF_TWO(name, expression) \
    inline float name(float x, float y) { return expression; } \
    inline half name(half h, half g) { \
        float x = float(h), y = float(g); \
        return half(expression); \
    }
// fmin and fmax, and for floats min and max: of a number and NaN, the number
#define FLOAT_FUNCTIONS \
    OF_ONE(exp, __builtin_expf(x)) \
    OF_ONE(exp2, __builtin_exp2f(x)) \
    OF_ONE(exp10, __builtin_powf(10.0f, x)) \
    OF_ONE(log, __builtin_logf(x)) \
    OF_ONE(log2, __builtin_log2f(x)) \
    OF_ONE(log10, __builtin_log10f(x)) \
    OF_ONE(sqrt, __builtin_sqrtf(x)) \
    OF_ONE(rsqrt, 1.0f / __builtin_sqrtf(x)) \
    OF_ONE(sin, __builtin_sinf(x)) \
    OF_ONE(cos, __builtin_cosf(x)) \
    OF_ONE(tan, __builtin_tanf(x)) \
    OF_ONE(asin, __builtin_asinf(x)) \
    OF_ONE(acos, __builtin_acosf(x)) \
    OF_ONE(atan, __builtin_atanf(x)) \
    OF_ONE(sinh, __builtin_sinhf(x)) \
    OF_ONE(cosh, __builtin_coshf(x)) \
    OF_ONE(tanh, __builtin_tanhf(x)) \
    OF_ONE(fabs, __builtin_fabsf(x)) \
    OF_ONE(abs, __builtin_fabsf(x)) \
    OF_ONE(floor, __builtin_floorf(x)) \
    OF_ONE(ceil, __builtin_ceilf(x)) \
    OF_ONE(trunc, __builtin_truncf(x)) \
    OF_ONE(rint, __builtin_rintf(x)) \
    OF_ONE(round, __builtin_roundf(x)) \
    OF_ONE(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f)) \
    OF_ONE(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? x : 0.0f) \
    OF_ONE(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f)) \
    OF_TWO(pow, __builtin_powf(x, y)) \
    OF_TWO(powr, __builtin_powf(x, y)) \
    OF_TWO(atan2, __builtin_atan2f(x, y)) \
    OF_TWO(fmod, __builtin_fmodf(x, y)) \
    OF_TWO(copysign, __builtin_copysignf(x, y)) \
    OF_TWO(fmin, __builtin_fminf(x, y)) \
    OF_TWO(fmax, __builtin_fmaxf(x, y)) \
    OF_TWO(min, __builtin_fminf(x, y)) \
    OF_TWO(max, __builtin_fmaxf(x, y)) \
    OF_TWO(step, y < x ? 0.0f : 1.0f) \
    inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); } \
    inline half fma(half a, half b, half c) { return __builtin_elementwise_fma(a, b, c); } \
    inline float clamp(float x, float low, float high) { return __builtin_fminf(__builtin_fmaxf(x, low), high); } \
    inline half clamp(half x, half low, half high) { return half(clamp(float(x), float(low), float(high))); } \
    inline float mix(float x, float y, float a) { return x + (y - x) * a; }
FLOAT_FUNCTIONS

// Vectors of floats, part by part.
#define PARTS_OF_ONE(name) \
    template <typename V, typename = enable_if_t<emulator::is_vector<V>>> inline V name(V x) { \
        V y; \
        for (int i = 0; i < emulator::Shape<V>::width; i++) y[i] = name(typename emulator::Shape<V>::element(x[i])); \
        return y; \
    }
PARTS_OF_ONE(exp)
PARTS_OF_ONE(exp2)
PARTS_OF_ONE(log)
PARTS_OF_ONE(sqrt)
PARTS_OF_ONE(rsqrt)
PARTS_OF_ONE(sin)
PARTS_OF_ONE(cos)
PARTS_OF_ONE(tanh)
PARTS_OF_ONE(fabs)
PARTS_OF_ONE(abs)
PARTS_OF_ONE(floor)
PARTS_OF_ONE(ceil)
PARTS_OF_ONE(rint)
PARTS_OF_ONE(round)
PARTS_OF_ONE(popcount)
#undef PARTS_OF_ONE

template <typename V, typename = enable_if_t<emulator::is_vector<V>>> inline V fma(V a, V b, V c) {
    return __builtin_elementwise_fma(a, b, c);
}
template <typename V, typename = enable_if_t<emulator::is_vector<V>>> inline typename emulator::Shape<V>::element dot(V a, V b) {
    typename emulator::Shape<V>::element sum = 0;
    for (int i = 0; i < emulator::Shape<V>::width; i++) sum += a[i] * b[i];
    return sum;
}
inline float length(float4 x) { return sqrt(dot(x, x)); }
inline float length(float3 x) { return sqrt(dot(x, x)); }
inline float length(float2 x) { return sqrt(dot(x, x)); }

namespace precise {
FLOAT_FUNCTIONS
}
namespace fast {
FLOAT_FUNCTIONS
}
#undef FLOAT_FUNCTIONS
#undef OF_ONE
#undef OF_TWO

inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isnan(half x) { return __builtin_isnan(float(x)); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isinf(half x) { return __builtin_isinf(float(x)); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline bool isfinite(half x) { return __builtin_isfinite(float(x)); }
inline bool signbit(float x) { return __builtin_signbit(x); }

// `b` where `chosen`, else `a`
template <typename T, typename = enable_if_t<!emulator::is_vector<T>>> inline T select(T a, T b, bool chosen) { return chosen ? b : a; }
template <typename T, int N, typename = enable_if_t<emulator::is_vector<vec<T, N>>>> inline vec<T, N> select_parts(vec<T, N> a, vec<T, N> b, vec<bool, N> chosen) {
    vec<T, N> y;
    for (int i = 0; i < N; i++) y[i] = chosen[i] ? b[i] : a[i];
    return y;
}
inline float4 select(float4 a, float4 b, bool4 chosen) { return select_parts<float, 4>(a, b, chosen); }
inline float2 select(float2 a, float2 b, bool2 chosen) { return select_parts<float, 2>(a, b, chosen); }

inline bool any(bool2 x) { return x[0] || x[1]; }
inline bool any(bool4 x) { return x[0] || x[1] || x[2] || x[3]; }
inline bool all(bool2 x) { return x[0] && x[1]; }
inline bool all(bool4 x) { return x[0] && x[1] && x[2] && x[3]; }

template <typename T> struct numeric_limits;
#define LIMITS(T, least, most) \
    template <> struct numeric_limits<T> { \
        static constexpr T lowest() { return least; } \
        static constexpr T max() { return most; } \
        static constexpr T infinity() { return T(INFINITY); } \
        static constexpr T quiet_NaN() { return T(NAN); } \
    };
LIMITS(float, -FLT_MAX, FLT_MAX)
LIMITS(half, -HALF_MAX, HALF_MAX)
#undef LIMITS
#define LIMITS(T, least, most) \
    template <> struct numeric_limits<T> { \
        static constexpr T lowest() { return least; } \
        static constexpr T min() { return least; } \
        static constexpr T max() { return most; } \
    };
LIMITS(uchar, 0, 255)
LIMITS(ushort, 0, 65535)
LIMITS(int, INT_MIN, INT_MAX)
LIMITS(uint, 0, UINT_MAX)
LIMITS(long, INT64_MIN, INT64_MAX)
LIMITS(ulong, 0, UINT64_MAX)
#undef LIMITS

} // namespace metal
