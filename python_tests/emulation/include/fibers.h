#pragma once
// Runs the threads of a CUDA grid on the CPU, for tests: one fiber a CUDA thread, switched only where a thread waits
// for others. Blocks run one after the other; those of a cooperative grid run in OS threads that pass a baton, because
// then `static thread_local` gives each block its own shared memory. The order is always the same, and a thread never
// sees the writes of a later one before a barrier: a dropped barrier changes the result every time.
#include <ucontext.h>

#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "plans.h"

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;

enum class State { kRuns, kAtWarp, kAtBlock, kAtGrid, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::kRuns;
  uint64_t published[2] = {0, 0};  // taken in turn, so that one wait an exchange is enough
  int exchanges = 0;
};

inline thread_local dim3 thread_index, block_index, block_size, grid_size;
inline thread_local std::vector<Fiber>* fibers;
inline thread_local int current;
inline thread_local ucontext_t scheduler;
inline thread_local const std::function<void()>* kernel_body;
inline thread_local std::vector<char> dynamic_shared;
inline thread_local std::function<void()> wait_for_grid;

inline std::mutex error_mutex;
inline std::string error_text;  // of the launches since the last cudaGetLastError

inline void report(const std::string& text) {
  const std::lock_guard<std::mutex> lock(error_mutex);
  if (error_text.empty()) error_text = text;
}

inline Fiber& self() { return (*fibers)[current]; }

inline void wait_at(State state) {
  self().state = state;
  swapcontext(&self().context, &scheduler);
}

inline void fiber_main() {
  (*kernel_body)();
  wait_at(State::kDone);
}

// Lets the waiting fibers of [first, last) run on if all that are not done wait at `state`.
inline bool release(int first, int last, State state) {
  bool any = false;
  for (int i = first; i < last; ++i) {
    const State at = (*fibers)[i].state;
    if (at != state && at != State::kDone) return false;
    any = any || at == state;
  }
  for (int i = first; any && i < last; ++i) {
    if ((*fibers)[i].state == state) (*fibers)[i].state = State::kRuns;
  }
  return any;
}

inline bool run_ready_fibers() {
  bool any = false;
  for (int i = 0; i < static_cast<int>(fibers->size()); ++i) {
    if ((*fibers)[i].state != State::kRuns) continue;
    current = i;
    thread_index = dim3(i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y));
    swapcontext(&scheduler, &(*fibers)[i].context);
    any = true;
  }
  return any;
}

inline void start_fibers(std::vector<Fiber>& block) {
  for (Fiber& fiber : block) {
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    fiber.state = State::kRuns;
    fiber.exchanges = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
}

inline void run_block(std::vector<Fiber>& block) {
  fibers = &block;
  start_fibers(block);
  const int size = static_cast<int>(block.size());
  for (;;) {
    bool moved = run_ready_fibers();
    for (int warp = 0; warp < size; warp += kWarp) {
      moved = release(warp, warp + kWarp < size ? warp + kWarp : size, State::kAtWarp) || moved;
    }
    moved = release(0, size, State::kAtBlock) || moved;
    bool done = true, at_grid = true;
    for (const Fiber& fiber : block) {
      done = done && fiber.state == State::kDone;
      at_grid = at_grid && fiber.state == State::kAtGrid;
    }
    if (done) return;
    if (at_grid && wait_for_grid) {
      wait_for_grid();
      moved = release(0, size, State::kAtGrid);
    }
    if (!moved) return report("emulation: threads of one block wait at different barriers, for ever");
  }
}

inline dim3 block_at(dim3 grid, unsigned i) { return dim3(i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)); }

inline void enter(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  grid_size = grid;
  block_size = block;
  kernel_body = &body;
  dynamic_shared.assign(shared_bytes, '\x7f');  // shared memory begins as rubbish
}

inline void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  note(grid, block, shared_bytes, false);
  std::vector<Fiber> threads(block.x * block.y * block.z);
  enter(grid, block, shared_bytes, body);
  wait_for_grid = nullptr;
  for (unsigned i = 0; i < grid.x * grid.y * grid.z; ++i) {
    block_index = block_at(grid, i);
    run_block(threads);
  }
}

// Passes between the blocks of a cooperative grid; only its holder runs.
class Baton {
 public:
  explicit Baton(int blocks) : done_(blocks, false), waits_(blocks, 0) {}

  void take(int block) {
    std::unique_lock<std::mutex> lock(mutex_);
    passed_.wait(lock, [&] { return holder_ == block; });
  }

  // The holder waits for the others, who come in turn. False if one of them left instead.
  bool wait(int block) {
    ++waits_[block];
    pass_on(block);
    take(block);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const int waits : waits_) {
      if (waits < waits_[block]) return false;
    }
    return true;
  }

  void leave(int block) {
    done_[block] = true;
    pass_on(block);
  }

 private:
  void pass_on(int block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int count = static_cast<int>(done_.size());
    for (int step = 1; step <= count; ++step) {
      holder_ = (block + step) % count;
      if (!done_[holder_]) break;
    }
    passed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable passed_;
  std::vector<bool> done_;
  std::vector<int> waits_;
  int holder_ = 0;
};

inline void launch_cooperative(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  note(grid, block, shared_bytes, true);
  const int blocks = static_cast<int>(grid.x * grid.y * grid.z);
  Baton baton(blocks);
  std::vector<std::thread> threads;
  for (int i = 0; i < blocks; ++i) {
    threads.emplace_back([&, i] {
      baton.take(i);
      enter(grid, block, shared_bytes, body);
      block_index = block_at(grid, i);
      wait_for_grid = [&] {
        if (!baton.wait(i)) report("emulation: a block left while others wait for the grid");
      };
      std::vector<Fiber> fibers_of_block(block.x * block.y * block.z);
      run_block(fibers_of_block);
      baton.leave(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Publishes 8 bytes to the other lanes of the warp and waits for theirs. Returns the turn under which they stand.
inline int publish(uint64_t bytes) {
  Fiber& fiber = self();
  const int turn = fiber.exchanges++ % 2;
  fiber.published[turn] = bytes;
  wait_at(State::kAtWarp);
  return turn;
}

// What lane `source` of this warp publishes now. All live lanes of the warp take part.
template <typename T>
T exchange(T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bytes = 0;
  std::memcpy(&bytes, &value, sizeof value);
  const int turn = publish(bytes);
  const size_t from = current / kWarp * kWarp + source;
  if (from >= fibers->size() || (*fibers)[from].exchanges < self().exchanges) {
    report("emulation: a lane reads from a lane that has left");
    return value;
  }
  std::memcpy(&value, &(*fibers)[from].published[turn], sizeof value);
  return value;
}

// A bit for each lane of the warp whose predicate holds.
inline unsigned ballot(bool predicate) {
  const int turn = publish(predicate);
  const int first = current / kWarp * kWarp;
  unsigned bits = 0;
  for (int lane = 0; lane < kWarp && first + lane < static_cast<int>(fibers->size()); ++lane) {
    const Fiber& other = (*fibers)[first + lane];
    if (other.exchanges >= self().exchanges && other.published[turn]) bits |= 1u << lane;
  }
  return bits;
}

}  // namespace emulation
