// The choice of experts: twin of src/backend/cpu/routing.rs. A SIMD-group a row.
#include "common.h"

// Experts of a router at most, and groups of them.
constant constexpr uint EXPERTS_AT_MOST = 1024;
constant constexpr uint GROUPS_AT_MOST = 32;

// Orders floats, NaN above infinity: IEEE 754, totalOrder.
inline int ordered(float x) {
    int bits = as_type<int>(x);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

// Below everything that `ordered` gives for a number.
constant constexpr int LEAST = -2147483647 - 1;

// The place of the largest value among those at lane, lane + 32, … below `count`, the lowest place among equals.
inline uint best(threadgroup const int *values, uint count, uint lane) {
    int most = LEAST;
    uint place = count;
    for (uint i = lane; i < count; i += LANES)
        if (values[i] > most || place == count) {
            most = values[i];
            place = i;
        }
    int top = simd_max(most);
    return simd_min(most == top ? place : count);
}

kernel void route(device const float *logits [[buffer(0)]], device const float *bias [[buffer(1)]],
                  device uint *chosen [[buffer(2)]], device float *weights [[buffer(3)]],
                  constant RouterParams &p [[buffer(4)]], uint row [[threadgroup_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float scores[EXPERTS_AT_MOST];
    threadgroup int wanted[EXPERTS_AT_MOST];
    threadgroup int group_sums[GROUPS_AT_MOST];
    device const float *own = logits + ulong(row) * p.experts;
    if (p.sigmoid_scores) {
        bool broken = false;
        for (uint i = lane; i < p.experts; i += LANES) {
            float score = sigmoid(own[i]), with_bias = score + bias[i];
            broken = broken || isnan(with_bias);
            scores[i] = score;
            wanted[i] = ordered(with_bias);
        }
        // it may rank last and stay unseen; a softmax has it in every weight
        if (simd_any(broken))
            for (uint i = lane; i < p.experts; i += LANES) scores[i] = NAN;
    } else {
        float most = -INFINITY;
        for (uint i = lane; i < p.experts; i += LANES) most = max(most, own[i]);
        most = simd_max(most);
        float sum = 0;
        for (uint i = lane; i < p.experts; i += LANES) {
            scores[i] = exp(own[i] - most);
            sum += scores[i];
        }
        sum = simd_sum(sum);
        for (uint i = lane; i < p.experts; i += LANES) {
            scores[i] /= sum;
            wanted[i] = ordered(scores[i]);
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (p.sigmoid_scores && p.groups > p.top_groups) {
        uint size = p.experts / p.groups;
        if (lane < p.groups) {
            float first = -INFINITY, second = -INFINITY;
            for (uint i = lane * size; i < (lane + 1) * size; i++) {
                float value = scores[i] + bias[i];
                if (value > first) {
                    second = first;
                    first = value;
                } else if (value > second) {
                    second = value;
                }
            }
            group_sums[lane] = ordered(size > 1 ? first + second : first);
        }
        // no barrier: as long as nothing else is written, `best` has a lane look at what it wrote itself
        uint kept = 0;
        for (uint i = 0; i < p.top_groups; i++) {
            uint group = best(group_sums, p.groups, lane);
            kept |= 1u << group;
            simdgroup_barrier(mem_flags::mem_threadgroup);
            if (lane == 0) group_sums[group] = LEAST;
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
        for (uint i = lane; i < p.experts; i += LANES)
            if ((kept >> (i / size) & 1) == 0) wanted[i] = ordered(-INFINITY);
    }
    float total = 0;
    for (uint rank = 0; rank < p.top_k; rank++) {
        uint expert = best(wanted, p.experts, lane);
        total += scores[expert];
        simdgroup_barrier(mem_flags::mem_threadgroup);
        if (lane == 0) {
            wanted[expert] = LEAST;
            chosen[ulong(row) * p.top_k + rank] = expert;
            weights[ulong(row) * p.top_k + rank] = scores[expert];
        }
        simdgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    }
    // DeepSeek-V3's code adds a little where scores are sigmoids
    total = p.normalise ? total + (p.sigmoid_scores ? 1e-20f : 0.0f) : 1.0f;
    for (uint rank = lane; rank < p.top_k; rank += LANES) {
        ulong at = ulong(row) * p.top_k + rank;
        weights[at] = weights[at] / total * p.scale;
    }
}
