// Metal's keywords; included after everything that is not a kernel.
#pragma once
#define kernel
#define thread
#ifdef MSL_ADDRESS_SPACES
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define MSL_SHARED(type, name, dimensions) static __attribute__((address_space(3))) type name dimensions
#else
#define device
#define constant
#define threadgroup
// a static's address tells one variable of one instantiation from all others
#define MSL_SHARED(type, name, dimensions) \
    static const char msl_id_##name = 0;   \
    type(&name) dimensions = *(type(*) dimensions)msl_shared(&msl_id_##name, sizeof(type dimensions))
#endif

#define float2(...) (::metal::make<float, 2>(__VA_ARGS__))
#define float4(...) (::metal::make<float, 4>(__VA_ARGS__))
#define uint2(...) (::metal::make<uint, 2>(__VA_ARGS__))
#define uint3(...) (::metal::make<uint, 3>(__VA_ARGS__))
#define ulong2(...) (::metal::make<ulong, 2>(__VA_ARGS__))
