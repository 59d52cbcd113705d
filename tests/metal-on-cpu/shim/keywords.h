// Metal's keywords, and vectors made of parts. Comes after all other headers, because these words are theirs too.
#pragma once

#define kernel
#define thread
#ifdef ADDRESS_SPACES
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant const
#define threadgroup
#endif
// what is coherent with the host is what the sanitizer tells apart, which Metal's volatile alone is not
#define coherent(scope) COHERENT_##scope
#define COHERENT_system __volatile__
#define COHERENT_device
#define volatile

#define float2(...) (::emulator::make<float, 2>(__VA_ARGS__))
#define float3(...) (::emulator::make<float, 3>(__VA_ARGS__))
#define float4(...) (::emulator::make<float, 4>(__VA_ARGS__))
#define half2(...) (::emulator::make<half, 2>(__VA_ARGS__))
#define half3(...) (::emulator::make<half, 3>(__VA_ARGS__))
#define half4(...) (::emulator::make<half, 4>(__VA_ARGS__))
#define bfloat2(...) (::emulator::make<bfloat, 2>(__VA_ARGS__))
#define bfloat4(...) (::emulator::make<bfloat, 4>(__VA_ARGS__))
#define int2(...) (::emulator::make<int, 2>(__VA_ARGS__))
#define int3(...) (::emulator::make<int, 3>(__VA_ARGS__))
#define int4(...) (::emulator::make<int, 4>(__VA_ARGS__))
#define uint2(...) (::emulator::make<uint, 2>(__VA_ARGS__))
#define uint3(...) (::emulator::make<uint, 3>(__VA_ARGS__))
#define uint4(...) (::emulator::make<uint, 4>(__VA_ARGS__))
#define ushort2(...) (::emulator::make<ushort, 2>(__VA_ARGS__))
#define ushort4(...) (::emulator::make<ushort, 4>(__VA_ARGS__))
#define uchar2(...) (::emulator::make<uchar, 2>(__VA_ARGS__))
#define uchar4(...) (::emulator::make<uchar, 4>(__VA_ARGS__))
#define ulong2(...) (::emulator::make<ulong, 2>(__VA_ARGS__))
#define bool2(...) (::emulator::make<bool, 2>(__VA_ARGS__))
#define bool4(...) (::emulator::make<bool, 4>(__VA_ARGS__))

// what Metal does not have
#pragma GCC poison double virtual goto new delete throw try dynamic_cast typeid
