// Inner parts of the emulation, shared by runtime.cpp (fibers, barriers, warps) and memory.cpp (checks of accesses).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"

namespace emu {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class State : std::uint8_t { ready, barrier, collective, done };

struct PendingCopy {
  void* target;
  const void* source;
  int bytes, source_bytes;
};

struct Thread {
  Fiber fiber;
  char* stack;
  uint3 index;
  std::uint16_t number;
  State state;
  Loc where;
  int group;                                        // committed cp.async groups so far
  std::vector<std::pair<int, PendingCopy>> copies;  // with the group they belong to
};

// One warp-wide operation some lanes of which have arrived.
struct Collective {
  unsigned mask, arrived;
  int kind;
  Loc where;
  void* payload[32];
};

struct Warp {
  unsigned lanes;  // mask of the lanes that exist
  std::uint32_t epoch;
  std::vector<Collective> open;
};

// Where and when memory was last touched, for each two bytes of it. Epochs are numbers that only grow: a new one
// begins with every block and at every barrier.
struct Cell {
  std::uint32_t write_epoch, write_warp_epoch, read_epoch, read_warp_epoch;
  std::uint16_t write_thread, read_thread;
  std::uint8_t initialised, many_readers, atomic, in_flight;
};

// A range of global memory that kernels may touch.
struct Region {
  std::uintptr_t begin, end;
  std::string name;
  std::vector<Cell> cells;
};

struct SharedArray {
  const void* key;
  const char* name;
  std::size_t offset, bytes;
};

struct Block {
  uint3 index;
  dim3 size, grid;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int thread_count = 0, arrived = 0, done = 0, predicate_sum = 0, predicate_result = 0;
  std::uint32_t launch_epoch = 0, first_epoch = 0, epoch = 0;
  // shared memory
  char* shared = nullptr;
  std::size_t shared_used = 0;
  std::vector<Cell> shared_cells;
  std::vector<SharedArray> arrays;
};

constexpr std::size_t stack_bytes = 128 * 1024;
constexpr std::size_t shared_limit = 227 * 1024;
constexpr std::size_t shared_default_limit = 48 * 1024;
constexpr std::size_t shared_guard = 256;
constexpr std::size_t shared_arena = shared_limit + 64 * shared_guard;

extern Block block;
extern Thread* current;  // null outside kernels
extern bool checking;    // the emulator itself is at work: accesses are not the kernel's
extern const Launch* launching;
extern std::uint32_t next_epoch;

enum class Access { read, write, atomic };
// Checks an access by the current thread, or on its behalf; ends the launch with a fault if it is not allowed.
void check_access(const void* address, std::size_t bytes, Access access, std::size_t alignment, const void* code);
void mark_in_flight(const void* shared, std::size_t bytes);
void reset_shared();
[[noreturn]] void fault(const std::string& what, const void* code = nullptr);
std::string describe(const Loc& where);

// What a caller hands to kernels. Fresh memory came uninitialised: it is poisoned at the start of the operation, must
// not be read before it is written, and must be written in full.
struct Buffer {
  std::uintptr_t begin;
  std::size_t bytes;
  std::string name;
  bool fresh;
};
// Kernels run between the two, and touch nothing but the buffers. end_operation throws Fault for an unwritten byte.
void begin_operation(std::vector<Buffer> buffers);
void end_operation(bool check_written = true);

extern std::vector<Region> regions;  // of the running operation, sorted, disjoint
extern std::string last_kernel;

}  // namespace emu
