// Metal's scalar and vector types, and how vectors are made of parts. `float4(…)` is a macro (keywords.h) for make<float, 4>.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define __METAL_VERSION__ 320
#define METAL_FUNC inline __attribute__((always_inline))

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;

constexpr half operator""h(long double value) { return half(value); }
constexpr half operator""h(unsigned long long value) { return half(value); }

// A packed vector is aligned as its element; three packed elements are twelve bytes, which no vector of clang's is.
#define VECTORS_OF(T) \
    typedef T T##2 __attribute__((ext_vector_type(2))); \
    typedef T T##3 __attribute__((ext_vector_type(3))); \
    typedef T T##4 __attribute__((ext_vector_type(4))); \
    typedef T packed_##T##2 __attribute__((ext_vector_type(2), aligned(alignof(T)))); \
    typedef T packed_##T##4 __attribute__((ext_vector_type(4), aligned(alignof(T))));
VECTORS_OF(bool)
VECTORS_OF(char)
VECTORS_OF(uchar)
VECTORS_OF(short)
VECTORS_OF(ushort)
VECTORS_OF(int)
VECTORS_OF(uint)
VECTORS_OF(long)
VECTORS_OF(ulong)
VECTORS_OF(half)
VECTORS_OF(bfloat)
VECTORS_OF(float)
#undef VECTORS_OF

struct packed_float3 {
    float x, y, z;
    operator float3() const { return (float3){x, y, z}; }
};

#define NAN (__builtin_nanf(""))
#define INFINITY (__builtin_inff())
#define HUGE_VALF INFINITY
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.1920929e-07f
#define HALF_MAX (half(65504.0f))
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define M_PI_F 3.14159265358979323846f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_SQRT1_2_F 0.707106781186547524401f

// libgcc before 13 lacks it: to the nearest, ties to even
extern "C" __attribute__((weak, visibility("hidden"))) bfloat __truncsfbf2(float value) {
    uint32_t bits = __builtin_bit_cast(uint32_t, value);
    bool nan = (bits & 0x7fffffff) > 0x7f800000;
    bits = nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    return __builtin_bit_cast(bfloat, uint16_t(bits >> 16));
}

namespace metal {

// Names of Metal's that kernels do not use: one of theirs with such a name would be ambiguous there.
enum class address {};
enum class s_address {};
enum class t_address {};
enum class r_address {};
enum class coord {};
enum class filter {};
enum class mip_filter {};
enum class mag_filter {};
enum class min_filter {};
enum class compare_func {};
enum class border_color {};
enum class access {};
struct sampler {};
struct level {};
struct bias {};

template <typename T, int N> struct Vector {
    typedef T type __attribute__((ext_vector_type(N)));
};
template <typename T, int N> using vec = typename Vector<T, N>::type;

} // namespace metal

namespace emulator {

using metal::vec;

// What a value is made of.
template <typename V> struct Shape {
    typedef V element;
    static constexpr int width = 1;
};
template <typename T, int N> struct Shape<T __attribute__((ext_vector_type(N)))> {
    typedef T element;
    static constexpr int width = N;
};
template <typename V> constexpr bool is_vector = Shape<V>::width > 1;

template <typename V, typename A> inline void append(V &to, int &at, A from) {
    typedef typename Shape<V>::element T;
    if constexpr (Shape<A>::width == 1) {
        to[at++] = T(from);
    } else {
        for (int i = 0; i < Shape<A>::width; i++) to[at++] = T(from[i]);
    }
}

constexpr int total() { return 0; }
template <typename... Rest> constexpr int total(int first, Rest... rest) { return first + total(rest...); }

template <typename T, int N, typename... A> inline vec<T, N> make(A... parts) {
    constexpr int given = total(Shape<A>::width...);
    vec<T, N> made{};
    if constexpr (given == 1) {
        for (int i = 0; i < N; i++) made[i] = T((parts, ...));
    } else {
        static_assert(given == N || given == 0, "a vector is made of one value or of as many as it has");
        int at = 0;
        (append(made, at, parts), ...);
    }
    return made;
}

} // namespace emulator

namespace metal {

// The traits that kernels need; <type_traits> would bring more than Metal has.
template <typename T, T V> struct integral_constant {
    static constexpr T value = V;
    constexpr operator T() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;
template <typename A, typename B> struct is_same : false_type {};
template <typename A> struct is_same<A, A> : true_type {};
template <typename A, typename B> constexpr bool is_same_v = is_same<A, B>::value;
template <bool B, typename A, typename> struct conditional {
    typedef A type;
};
template <typename A, typename C> struct conditional<false, A, C> {
    typedef C type;
};
template <bool B, typename A, typename C> using conditional_t = typename conditional<B, A, C>::type;
template <bool B, typename T = void> struct enable_if {};
template <typename T> struct enable_if<true, T> {
    typedef T type;
};
template <bool B, typename T = void> using enable_if_t = typename enable_if<B, T>::type;
template <typename T>
constexpr bool is_floating_point_v = is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>;

} // namespace metal
