// Runs threadgroups: a fiber a thread, 32 fibers a SIMD-group. A fiber runs until it needs the others: a SIMD function or a
// barrier hands over to the next one. Everything of a call happens on one thread of the operating system.
#include "thread.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <string>
#include <vector>

#ifdef __SANITIZE_THREAD__
#define MSL_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MSL_TSAN
#endif
#endif
#ifdef MSL_TSAN
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *address);
void __tsan_release(void *address);
}
enum { NO_SYNC = 1 };
#endif

extern "C" thread_local const MslThread *msl_thread;
thread_local const MslThread *msl_thread = nullptr;

namespace {

enum : size_t { STACK = 64 << 10, MOST_THREADS = 1024, MOST_SHARED = 32 << 10 };

// Saves the registers that a call keeps, notes the stack, and goes on where `to` has noted its own.
extern "C" void msl_switch(void **save, void *to);
#if defined(__x86_64__)
asm(".text\n.globl msl_switch\nmsl_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
// words that the first switch to a fiber takes off its stack, the entry last
// (a function starts eight bytes off a multiple of sixteen)
enum { FRAME = 7, ENTRY = 6, ABOVE = 1 };
#elif defined(__aarch64__)
asm(".text\n.globl msl_switch\nmsl_switch:\n"
    " sub sp, sp, #160\n"
    " stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n stp x25, x26, [sp, #48]\n"
    " stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n"
    " stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
    " mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
    " ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
    " ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"
    " ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
    " add sp, sp, #160\n ret\n");
enum { FRAME = 20, ENTRY = 11, ABOVE = 2 };
#endif

struct Fiber {
    void *stack;
    MslThread place;
    MslSite site;
#ifdef MSL_TSAN
    void *tsan;
#endif
};

// Masks have a bit a fiber, in the order in which they take turns.
struct SimdGroup {
    uint first, live, shown, barred;
    uint generation, active[2];
    char tags[2];
    alignas(64) unsigned char slots[2][MSL_LANES * MSL_SLOT];

    uint ready() const { return live & ~shown & ~barred; }
};

// Numbers for the order of turns (xorshift).
struct Dice {
    uint state;
    uint below(uint bound) {
        state ^= state << 13, state ^= state >> 17, state ^= state << 5;
        return state % bound;
    }
};

struct Group {
    std::vector<Fiber> fibers;
    std::vector<SimdGroup> simds;
    const MslKernel *kernel;
    void **buffers;
    void *outside;
    uint current, simd, barriers;
    std::string error;
    std::vector<std::pair<const void *, size_t>> shared;
    size_t shared_bytes;
    unsigned char *shared_memory;
    char tag;
#ifdef MSL_TSAN
    void *tsan;
#endif

    bool next(uint &fiber);
    void hand_over();
};

thread_local Group *group = nullptr;

std::string said(MslSite site) { return std::string(site.file) + ":" + std::to_string(site.line); }
bool same(MslSite a, MslSite b) { return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0); }

// Chooses who goes on; nobody if all are done or none can.
bool Group::next(uint &fiber) {
    for (uint tried = 0; tried < simds.size(); tried++, simd = (simd + 1) % simds.size()) {
        SimdGroup &s = simds[simd];
        if (!s.ready() && s.shown && s.shown == s.live) {
            // all are there
            MslSite site = fibers[s.first + uint(__builtin_ctz(s.shown))].site;
            uint active = 0;
            for (uint rest = s.shown; rest; rest &= rest - 1) {
                Fiber &f = fibers[s.first + uint(__builtin_ctz(rest))];
                active |= 1u << f.place.thread_index_in_simdgroup[0];
                if (!same(site, f.site)) {
                    error = "lanes of one SIMD-group wait at " + said(site) + " and at " + said(f.site);
                    return false;
                }
            }
            s.active[s.generation++ & 1] = active;
            s.shown = 0;
        }
        if (uint ready = s.ready()) {
            // after the current one, so that they take turns
            uint after = current - s.first < 31 ? ready & ~((2u << (current - s.first)) - 1) : 0;
            fiber = s.first + uint(__builtin_ctz(after ? after : ready));
            return true;
        }
    }
    uint live = 0, barred = 0;
    for (SimdGroup &s : simds) live |= s.live, barred |= s.barred;
    if (!live) return false;
    const Fiber *first = nullptr;
    for (SimdGroup &s : simds)
        for (uint rest = s.live; rest; rest &= rest - 1) {
            uint bit = uint(__builtin_ctz(rest));
            const Fiber &f = fibers[s.first + bit];
            if (!first) first = &f;
            if ((s.barred >> bit & 1) == 0 || !same(first->site, f.site)) {
                error = "a deadlock: threads of one threadgroup wait at " + said(first->site) + " and at " + said(f.site);
                return false;
            }
        }
    for (SimdGroup &s : simds) s.barred = 0;
    barriers++;
    return next(fiber);
}

// From the current fiber to the next one, or out.
void Group::hand_over() {
    void **save = &fibers[current].stack;
    uint to;
    bool goes_on = next(to);
    if (goes_on && to == current) return;
    void *stack = goes_on ? fibers[to].stack : outside;
#ifdef MSL_TSAN
    __tsan_switch_to_fiber(goes_on ? fibers[to].tsan : tsan, NO_SYNC);
#endif
    if (goes_on) {
        current = to;
        msl_thread = &fibers[to].place;
    }
    msl_switch(save, stack);
}

void entry() {
    Group &g = *group;
#ifdef MSL_TSAN
    __tsan_acquire(&g.tag);
#endif
    g.kernel->entry(g.buffers);
#ifdef MSL_TSAN
    __tsan_release(&g.tag);
#endif
    SimdGroup &s = g.simds[g.fibers[g.current].place.simdgroup_index_in_threadgroup[0]];
    s.live &= ~(1u << (g.current - s.first));
    g.hand_over();
    abort();
}

// Memory that a thread of the operating system keeps for its threadgroups.
struct Room {
    char *stacks = (char *)mmap(nullptr, MOST_THREADS *STACK, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    unsigned char *shared = (unsigned char *)aligned_alloc(64, MOST_SHARED);
    ~Room() {
        munmap(stacks, MOST_THREADS * STACK);
        free(shared);
    }
};

void start(Fiber &fiber, char *stacks, uint number) {
    void **top = (void **)(stacks + size_t(number + 1) * STACK) - ABOVE;
    void **frame = top - FRAME;
    memset(frame, 0, (FRAME + ABOVE) * sizeof *frame);
    frame[ENTRY] = (void *)entry;
    fiber.stack = frame;
}

} // namespace

extern "C" void msl_threadgroup_barrier(MslSite site) {
    Group &g = *group;
    SimdGroup &s = g.simds[g.fibers[g.current].place.simdgroup_index_in_threadgroup[0]];
    g.fibers[g.current].site = site;
    s.barred |= 1u << (g.current - s.first);
#ifdef MSL_TSAN
    __tsan_release(&g.tag);
#endif
    g.hand_over();
#ifdef MSL_TSAN
    __tsan_acquire(&g.tag);
#endif
}

extern "C" const unsigned char *msl_exchange(const void *value, uint bytes, MslSite site, uint *active) {
    Group &g = *group;
    Fiber &f = g.fibers[g.current];
    SimdGroup &s = g.simds[f.place.simdgroup_index_in_threadgroup[0]];
    uint turn = s.generation & 1;
    memcpy(s.slots[turn] + f.place.thread_index_in_simdgroup[0] * MSL_SLOT, value, bytes);
    f.site = site;
    s.shown |= 1u << (g.current - s.first);
#ifdef MSL_TSAN
    __tsan_release(&s.tags[turn]);
#endif
    g.hand_over();
#ifdef MSL_TSAN
    __tsan_acquire(&s.tags[turn]);
#endif
    *active = s.active[turn];
    return s.slots[turn];
}

extern "C" void *msl_shared(const void *id, size_t bytes) {
    Group &g = *group;
    for (auto &[known, at] : g.shared)
        if (known == id) return g.shared_memory + at;
    size_t at = g.shared_bytes;
    g.shared_bytes += (bytes + 15) / 16 * 16;
    if (g.shared_bytes > MOST_SHARED) {
        g.error = "threadgroup variables of " + std::to_string(g.shared_bytes) + " bytes";
        at = 0;
    }
    g.shared.emplace_back(id, at);
    return g.shared_memory + at;
}

// Runs all threadgroups of a call. `order`: 0 first to last, 1 last to first, else shuffled, threadgroups and lanes alike.
// Returns 0, or 1 with a message in `error`.
extern "C" int msl_run(const MslKernel *kernel, void **buffers, const uint groups[3], const uint threads[3], uint order,
                       char *error, size_t error_bytes) {
    static thread_local Room room;
    Group g;
    Dice dice{order * 2654435761u + 1};
    uint count = threads[0] * threads[1] * threads[2], all = groups[0] * groups[1] * groups[2];
    g.kernel = kernel, g.buffers = buffers, g.shared_memory = room.shared;
    g.fibers.resize(count), g.simds.resize((count + MSL_LANES - 1) / MSL_LANES);
#ifdef MSL_TSAN
    g.tsan = __tsan_get_current_fiber();
#endif
    std::vector<uint> turns(all), lanes(MSL_LANES);
    for (uint i = 0; i < all; i++) turns[i] = order == 1 ? all - 1 - i : i;
    for (uint i = all; order > 1 && i > 1; i--) std::swap(turns[i - 1], turns[dice.below(i)]);
    group = &g;
    for (uint number : turns) {
        uint at[3] = {number % groups[0], number / groups[0] % groups[1], number / groups[0] / groups[1]};
        g.shared.clear(), g.shared_bytes = 0, g.simd = 0;
        memset(room.shared, 0xff, MOST_SHARED);
        for (uint i = 0; i < g.simds.size(); i++) {
            SimdGroup &s = g.simds[i];
            uint width = count - i * MSL_LANES < MSL_LANES ? count - i * MSL_LANES : MSL_LANES;
            s.first = i * MSL_LANES, s.live = width == MSL_LANES ? ~0u : (1u << width) - 1;
            s.shown = s.barred = s.generation = 0;
            for (uint l = 0; l < width; l++) lanes[l] = order == 1 ? width - 1 - l : l;
            for (uint l = width; order > 1 && l > 1; l--) std::swap(lanes[l - 1], lanes[dice.below(l)]);
            for (uint l = 0; l < width; l++) {
                Fiber &f = g.fibers[s.first + l];
                uint thread = s.first + lanes[l];
                uint own[3] = {thread % threads[0], thread / threads[0] % threads[1], thread / threads[0] / threads[1]};
                MslThread &p = f.place;
                for (int k = 0; k < 3; k++) {
                    p.thread_position_in_threadgroup[k] = own[k];
                    p.threadgroup_position_in_grid[k] = at[k];
                    p.thread_position_in_grid[k] = at[k] * threads[k] + own[k];
                    p.threadgroups_per_grid[k] = groups[k];
                    p.threads_per_threadgroup[k] = threads[k];
                }
                p.thread_index_in_threadgroup[0] = thread;
                p.thread_index_in_simdgroup[0] = lanes[l];
                p.simdgroup_index_in_threadgroup[0] = i;
                p.simdgroups_per_threadgroup[0] = uint(g.simds.size());
                f.site = {"the start", 0};
                start(f, room.stacks, s.first + l);
#ifdef MSL_TSAN
                f.tsan = __tsan_create_fiber(0);
#endif
            }
        }
        if (order == 1) g.simd = uint(g.simds.size()) - 1;
        if (order > 1) g.simd = dice.below(uint(g.simds.size()));
#ifdef MSL_TSAN
        __tsan_release(&g.tag);
#endif
        g.current = g.simds[g.simd].first;
        uint to;
        if (g.next(to)) {
            g.current = to;
            msl_thread = &g.fibers[to].place;
#ifdef MSL_TSAN
            __tsan_switch_to_fiber(g.fibers[to].tsan, NO_SYNC);
#endif
            msl_switch(&g.outside, g.fibers[to].stack);
        }
#ifdef MSL_TSAN
        __tsan_acquire(&g.tag);
        for (Fiber &f : g.fibers) __tsan_destroy_fiber(f.tsan);
#endif
        if (!g.error.empty()) break;
    }
    group = nullptr, msl_thread = nullptr;
    if (g.error.empty()) return 0;
    snprintf(error, error_bytes, "%s", g.error.c_str());
    return 1;
}
