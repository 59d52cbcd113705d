// How eight neighbouring weights of a row become floats: a structure a format, twin of src/backend/cpu/rows.rs and
// packed.rs. Rows and columns are counted in the matrix; columns are multiples of eight where values are packed.
#include "common.h"

// Values that a thread widens at once.
constant constexpr uint RUN = 8;

inline float bf16_at(device const uchar *at, uint index) {
    return as_type<float>(uint(((device const ushort *)at)[index]) << 16);
}

// OCP 8-bit floating point, table 1; without subnormal floats on the way, which a GPU may flush
inline float e4m3(uint code) {
    uint exponent = code >> 3 & 15, mantissa = code & 7;
    float magnitude = exponent == 0 ? float(mantissa) * 0.001953125f : as_type<float>((exponent + 120) << 23 | mantissa << 20);
    magnitude = (code & 127) == 127 ? NAN : magnitude;
    return (code & 128) != 0 ? -magnitude : magnitude;
}

// OCP Microscaling Formats 1.0, section 5.4.1; 2⁻¹²⁷ may be flushed
inline float e8m0(uint code) { return code == 255 ? NAN : as_type<float>(code == 0 ? 0x400000u : code << 23); }

// The values of E2M1 (OCP Microscaling Formats 1.0, table 5)
constant constexpr float E2M1[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

// Number `index` of what scales a matrix.
inline float scale_at(device const uchar *scales, uint index, uint dtype) {
    switch (dtype) {
    case 0: return ((device const float *)scales)[index];
    case 1: return float(((device const half *)scales)[index]);
    case 2: return bf16_at(scales, index);
    case 3: return e8m0(scales[index]);
    default: return e4m3(scales[index]);
    }
}

// Where a matrix and what scales it start, and the row and column of its first block that it starts at.
struct Stored {
    device const uchar *values;
    device const uchar *scales;
    device const uchar *biases;
    uint row;
    uint column;
};

inline Stored stored_at(device const MatrixAt &at) { return {at.values, at.scales, at.biases, at.row, at.column}; }

struct F32 {
    static float at(Stored w, constant MatrixParams &m, uint row, uint column) {
        return ((device const float *)(w.values + ulong(row) * m.row_bytes))[column];
    }
};

struct F16 {
    static float at(Stored w, constant MatrixParams &m, uint row, uint column) {
        return float(((device const half *)(w.values + ulong(row) * m.row_bytes))[column]);
    }
};

struct Bf16 {
    static float at(Stored w, constant MatrixParams &m, uint row, uint column) {
        return bf16_at(w.values + ulong(row) * m.row_bytes, column);
    }
};

// E4M3 times a scale a block of `group` × `group`.
struct Fp8 {
    static float at(Stored w, constant MatrixParams &m, uint row, uint column) {
        uint block = (row + w.row) / m.group * m.groups_a_row + (column + w.column) / m.group;
        float scale = scale_at(w.scales, block, m.scales);
        return e4m3(w.values[ulong(row) * m.row_bytes + column]) * scale;
    }
};

// Up to eight plain values from `column` on, zeros from `end` on.
template <typename F> struct Plain {
    static void load(Stored w, constant MatrixParams &m, uint row, uint column, uint end, thread float *to) {
        for (uint i = 0; i < 8; i++) to[i] = column + i < end ? F::at(w, m, row, column + i) : 0.0f;
    }
};

// The codes of eight neighbours, LSB first: BITS bytes.
template <uint BITS> inline ulong codes(Stored w, constant MatrixParams &m, uint row, uint column) {
    device const uchar *at = w.values + ulong(row) * m.row_bytes + column / 8 * BITS;
    ulong word = 0;
    for (uint i = 0; i < BITS; i++) word |= ulong(at[i]) << (8 * i);
    return word;
}

// scale · q + bias; without biases four bits are counted from eight.
template <uint BITS> struct Affine {
    static void load(Stored w, constant MatrixParams &m, uint row, uint column, uint, thread float *to) {
        ulong word = codes<BITS>(w, m, row, column);
        uint index = row * m.groups_a_row + column / m.group;
        float scale = scale_at(w.scales, index, m.scales);
        float bias = m.biased ? scale_at(w.biases, index, m.scales) : -8.0f * scale;
        for (uint i = 0; i < 8; i++) to[i] = fma(scale, float(uint(word >> (BITS * i)) & ((1u << BITS) - 1)), bias);
    }
};

// E2M1 times a scale: MXFP4 and NVFP4.
struct Fp4 {
    static void load(Stored w, constant MatrixParams &m, uint row, uint column, uint, thread float *to) {
        ulong word = codes<4>(w, m, row, column);
        float scale = scale_at(w.scales, row * m.groups_a_row + column / m.group, m.scales);
        for (uint i = 0; i < 8; i++) to[i] = E2M1[uint(word >> (4 * i)) & 15] * scale;
    }
};

// E4M3 times a power of two.
struct Mxfp8 {
    static void load(Stored w, constant MatrixParams &m, uint row, uint column, uint, thread float *to) {
        ulong word = codes<8>(w, m, row, column);
        float scale = scale_at(w.scales, row * m.groups_a_row + column / m.group, m.scales);
        for (uint i = 0; i < 8; i++) to[i] = e4m3(uint(word >> (8 * i)) & 255) * scale;
    }
};

// Instantiates a kernel for every format.
#define FOR_ALL_FORMATS(MAKE) \
    MAKE(f32, Plain<F32>) MAKE(f16, Plain<F16>) MAKE(bf16, Plain<Bf16>) MAKE(fp8, Plain<Fp8>) \
    MAKE(affine2, Affine<2>) MAKE(affine3, Affine<3>) MAKE(affine4, Affine<4>) MAKE(affine5, Affine<5>) \
    MAKE(affine6, Affine<6>) MAKE(affine8, Affine<8>) MAKE(fp4, Fp4) MAKE(mxfp8, Mxfp8)
