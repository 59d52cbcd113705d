// Calls a kernel with what its parameters are bound to.
#pragma once

namespace msl {

template <uint Index> struct Buffer {
    template <typename P> struct As;
    template <typename T> struct As<T *> {
        static T *get(void **buffers) { return (T *)buffers[Index]; }
    };
    template <typename T> struct As<T &> {
        static T &get(void **buffers) { return *(T *)buffers[Index]; }
    };
};

template <auto Member> struct Position {
    template <typename P> struct As {
        static P get(void **) {
            P value{};
            if constexpr (metal::lanes_of<P> == 1) value = P((msl_thread->*Member)[0]);
            else
                for (int i = 0; i < metal::lanes_of<P>; i++) value[i] = (msl_thread->*Member)[i];
            return value;
        }
    };
};

template <typename... Bound> struct Call {
    template <typename... P> static void run(void (*function)(P...), void **buffers) {
        function(Bound::template As<P>::get(buffers)...);
    }
};

} // namespace msl
