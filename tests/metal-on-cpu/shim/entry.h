// How the emulator calls a kernel: a row of a table, and a function that binds the kernel's parameters by their attributes.
#pragma once
#include "simdgroup.h"

namespace emulator {

enum Kind { Bound, PositionInGrid, PositionInGroup, GroupPosition, ThreadsOfGroup, Groups, ThreadsOfGrid, Index, Lane, Simdgroup,
            Simdgroups, SimdgroupWidth };

// Where a parameter comes from; `at` is the index of a buffer.
template <Kind K, uint At = 0> struct From {
    static constexpr Kind kind = K;
    static constexpr uint at = At;
};

template <typename P> struct Value {
    template <typename F> static P get(const Thread &thread) {
        if constexpr (F::kind == PositionInGrid || F::kind == ThreadsOfGrid) {
            uint numbers[3];
            for (uint i = 0; i < 3; i++)
                numbers[i] = F::kind == ThreadsOfGrid ? thread.groups[i] * thread.threads[i]
                                                      : thread.group[i] * thread.threads[i] + thread.position_in_group[i];
            return parts(numbers);
        }
        if constexpr (F::kind == PositionInGroup) return parts(thread.position_in_group);
        if constexpr (F::kind == GroupPosition) return parts(thread.group);
        if constexpr (F::kind == ThreadsOfGroup) return parts(thread.threads);
        if constexpr (F::kind == Groups) return parts(thread.groups);
        if constexpr (F::kind == Index) return P(thread.index);
        if constexpr (F::kind == Lane) return P(thread.lane);
        if constexpr (F::kind == Simdgroup) return P(thread.simdgroup);
        if constexpr (F::kind == Simdgroups) return P(thread.simdgroups);
        if constexpr (F::kind == SimdgroupWidth) return P(32);
    }
    static P parts(const uint *numbers) {
        if constexpr (is_vector<P>) {
            P value;
            for (int i = 0; i < Shape<P>::width; i++) value[i] = numbers[i];
            return value;
        } else {
            return P(numbers[0]);
        }
    }
    static constexpr bool writes = false;
    // a grid's numbers must have as many parts as each other
    static constexpr uint width = Shape<P>::width;
};
template <typename P> struct Value<P *> {
    template <typename F> static P *get(const Thread &thread) { return (P *)thread.bound[F::at]; }
    static constexpr bool writes = !__is_const(P);
    static constexpr uint width = 0;
};
template <typename P> struct Value<P &> {
    template <typename F> static P &get(const Thread &thread) { return *(P *)thread.bound[F::at]; }
    static constexpr bool writes = !__is_const(P);
    static constexpr uint width = 0;
};

struct Entry {
    const char *name;
    void (*call)(const Thread *);
    // bits of the buffers that the kernel takes, and of those that it may write
    uint bound, written;
    // threads of a threadgroup at most
    uint threads;
};

template <typename... F> struct Parameters {
    template <typename... P> static constexpr uint bound(void (*)(P...)) {
        return (0u | ... | (F::kind == Bound ? 1u << F::at : 0u));
    }
    template <typename... P> static constexpr uint written(void (*)(P...)) {
        return (0u | ... | (F::kind == Bound && Value<P>::writes ? 1u << F::at : 0u));
    }
    // Metal asks that a kernel's positions and sizes in the grid have as many parts as each other
    template <typename... P> static constexpr bool agree(void (*)(P...)) {
        uint widths = (0u | ... | (F::kind != Bound && F::kind < Index ? 1u << Value<P>::width : 0u));
        return (widths & (widths - 1)) == 0;
    }
    template <typename... P> static void call(void (*function)(P...), const Thread *thread) {
        function(Value<P>::template get<F>(*thread)...);
    }
};

} // namespace emulator
