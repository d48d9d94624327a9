// Runs kernels: every thread of a block is a fiber; blocks run one after another. Each launch is repeated under several
// orders of blocks and threads, from the same memory, and must give the same bytes.

#include "runtime.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <numeric>
#include <random>

namespace emu {

Block block;
Thread* current = nullptr;
const Launch* launching = nullptr;
std::uint32_t next_epoch = 1;
std::string last_kernel;

namespace {

Fiber scheduler;
std::string fault_message;
bool faulted = false;
std::map<const void*, std::size_t> shared_allowance;

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

void yield() {
  fiber_switch(current->fiber, scheduler);
}

void new_epoch() {
  block.epoch = next_epoch++;
  for (Warp& warp : block.warps) warp.epoch = block.epoch;
}

void land_copies(int groups_left) {
  auto& copies = current->copies;
  std::size_t landed = 0;
  while (landed < copies.size() && copies[landed].first <= current->group - groups_left) {
    const PendingCopy& c = copies[landed++].second;
    const std::size_t offset = static_cast<std::size_t>(static_cast<char*>(c.target) - block.shared);
    for (std::size_t i = offset / 2; i < (offset + c.bytes) / 2; ++i) block.shared_cells[i].in_flight = 0;
    check_access(c.target, c.bytes, Access::write, 1, nullptr);
    std::memset(c.target, 0, c.bytes);
    std::memcpy(c.target, c.source, c.source_bytes);
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(landed));
}

void thread_main() {
  launching->invoke(*launching);
  land_copies(-1);
  current->state = State::done;
  ++block.done;
  yield();
  std::abort();  // a finished fiber is never entered again
}

[[noreturn]] void stop(const std::string& message) {
  current = nullptr;
  const std::string name = launching->kernel_name;
  launching = nullptr;
  throw Fault("kernel " + name + ": " + message);
}

[[noreturn]] void explain_deadlock() {
  std::string message;
  int listed = 0;
  for (const Thread& t : block.threads) {
    if (t.number >= block.thread_count || t.state == State::done) continue;
    if (listed++ == 4) break;
    message += (listed > 1 ? "; thread " : "thread ") + text(t.index) +
               (t.state == State::barrier ? " waits at the barrier at " : " waits at the warp operation at ") +
               describe(t.where);
  }
  if (block.done) message += "; " + std::to_string(block.done) + " threads have ended";
  stop("block " + text(block.index) + ": deadlock: " + message);
}

void prepare_threads() {
  const int count = static_cast<int>(block.size.x * block.size.y * block.size.z);
  while (static_cast<int>(block.threads.size()) < count) {
    Thread t{};
    void* stack =
        mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    t.stack = static_cast<char*>(stack);
    mprotect(stack, 4096, PROT_NONE);  // a stack overflow stops the process instead of going on with nonsense
    t.number = static_cast<std::uint16_t>(block.threads.size());
    block.threads.push_back(std::move(t));
  }
  block.thread_count = count;
  block.warps.resize((count + 31) / 32);
  for (int i = 0; i < count; ++i) {
    Thread& t = block.threads[i];
    const unsigned n = static_cast<unsigned>(i);
    t.index = {n % block.size.x, n / block.size.x % block.size.y, n / (block.size.x * block.size.y)};
    t.state = State::ready;
    t.group = 0;
    t.copies.clear();
    fiber_init(t.fiber, t.stack, stack_bytes, thread_main);
  }
  for (std::size_t w = 0; w < block.warps.size(); ++w) {
    const int lanes = std::min(32, count - static_cast<int>(w) * 32);
    block.warps[w].lanes = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
    block.warps[w].open.clear();
  }
}

enum Order { forward, reverse, shuffled };

void run_block(uint3 index, Order kind, std::mt19937& random) {
  block.index = index;
  block.arrived = block.done = block.predicate_sum = 0;
  prepare_threads();
  new_epoch();
  block.first_epoch = block.epoch;
  reset_shared();
  static std::vector<int> order;
  order.resize(block.thread_count);
  std::iota(order.begin(), order.end(), 0);
  if (kind == reverse) std::reverse(order.begin(), order.end());
  while (block.done < block.thread_count) {
    if (kind == shuffled) std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    for (const int i : order) {
      Thread& t = block.threads[i];
      if (t.state != State::ready) continue;
      progress = true;
      current = &t;
      fiber_switch(scheduler, t.fiber);
      if (faulted) {
        faulted = checking = false;
        stop(fault_message);
      }
    }
    if (!progress) explain_deadlock();
  }
  current = nullptr;
}

void run_grid(Order kind, unsigned seed) {
  const dim3 g = block.grid;
  std::vector<std::uint64_t> order(std::uint64_t{g.x} * g.y * g.z);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  std::mt19937 random(seed);
  if (kind == reverse) std::reverse(order.begin(), order.end());
  if (kind == shuffled) std::shuffle(order.begin(), order.end(), random);
  block.launch_epoch = next_epoch++;
  for (const std::uint64_t b : order) {
    run_block({static_cast<unsigned>(b % g.x), static_cast<unsigned>(b / g.x % g.y),
               static_cast<unsigned>(b / (std::uint64_t{g.x} * g.y))},
              kind, random);
  }
}

// The regions' bytes and cells, to start every order from the same memory.
struct Snapshot {
  std::vector<std::vector<char>> bytes;
  std::vector<std::vector<Cell>> cells;
  Snapshot() {
    for (const Region& r : regions) {
      bytes.emplace_back(reinterpret_cast<char*>(r.begin), reinterpret_cast<char*>(r.end));
      cells.push_back(r.cells);
    }
  }
  void restore() const {
    for (std::size_t i = 0; i < regions.size(); ++i) {
      std::memcpy(reinterpret_cast<void*>(regions[i].begin), bytes[i].data(), bytes[i].size());
      regions[i].cells = cells[i];
    }
  }
  void compare() const {
    for (std::size_t i = 0; i < regions.size(); ++i) {
      const auto* now = reinterpret_cast<const char*>(regions[i].begin);
      for (std::size_t k = 0; k < bytes[i].size(); ++k) {
        if (now[k] != bytes[i][k]) {
          stop("results differ between thread orders, in buffer " + regions[i].name + " at byte " + std::to_string(k));
        }
      }
    }
  }
};

void check_configuration(const Launch& l) {
  const auto reject = [&](const std::string& why) { throw Fault(std::string("kernel ") + l.kernel_name + ": " + why); };
  const std::uint64_t threads = std::uint64_t{l.block.x} * l.block.y * l.block.z;
  if (threads == 0 || threads > 1024 || l.block.z > 64)
    reject("invalid block " + text({l.block.x, l.block.y, l.block.z}));
  if (l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0 || l.grid.x > 0x7fffffffu || l.grid.y > 65535 ||
      l.grid.z > 65535) {
    reject("invalid grid " + text({l.grid.x, l.grid.y, l.grid.z}));
  }
  const auto it = shared_allowance.find(l.kernel);
  const std::size_t limit = it == shared_allowance.end() ? shared_default_limit : it->second;
  if (l.dynamic_shared > limit) {
    reject(std::to_string(l.dynamic_shared) + " bytes of dynamic shared memory asked for, " + std::to_string(limit) +
           " allowed (allow_dynamic_shared)");
  }
}

int order_count() {
  const char* text = std::getenv("ATU_EMULATION_ORDERS");
  return text ? std::max(1, std::atoi(text)) : 3;
}

}  // namespace

std::string describe(const Loc& where) {
  const std::string file = where.file_name();
  const auto slash = file.rfind('/');
  return (slash == std::string::npos ? file : file.substr(slash + 1)) + ":" + std::to_string(where.line());
}

std::string source_line(const void* code);

void fault(const std::string& what, const void* code) {
  if (!current) throw Fault(what);
  checking = true;
  fault_message = "block " + text(block.index) + ", thread " + text(current->index) + ": " + what;
  if (const std::string line = source_line(code); !line.empty()) fault_message += " [" + line + "]";
  faulted = true;
  yield();
  std::abort();
}
void fault(const char* what) {
  fault(std::string(what), nullptr);
}

void run(const Launch& launch) {
  check_configuration(launch);
  if (!block.shared) {
    void* arena = mmap(nullptr, shared_arena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED) throw std::bad_alloc();
    block.shared = static_cast<char*>(arena);
    block.shared_cells.resize(shared_arena / 2);
  }
  launching = &launch;
  last_kernel = launch.kernel_name;
  block.size = launch.block;
  block.grid = launch.grid;
  const int orders = order_count();
  if (orders == 1) {
    run_grid(forward, 0);
  } else {
    const Snapshot before;
    run_grid(forward, 0);
    const Snapshot first;
    for (int i = 1; i < orders; ++i) {
      before.restore();
      run_grid(i == 1 ? reverse : shuffled, static_cast<unsigned>(i));
      first.compare();
    }
  }
  launching = nullptr;
}

// ---- built-in variables -------------------------------------------------------------------------------------------

uint3 thread_index() {
  return current->index;
}
uint3 block_index() {
  return block.index;
}
dim3 block_size() {
  return block.size;
}
dim3 grid_size() {
  return block.grid;
}

// ---- shared memory ------------------------------------------------------------------------------------------------

namespace {
void* add_array(const void* key, const char* name, std::size_t bytes) {
  const std::size_t offset = (block.shared_used + shared_guard + 127) / 128 * 128;
  std::size_t total = bytes;
  for (const SharedArray& a : block.arrays) total += a.bytes;
  if (offset + bytes > shared_arena || total > shared_limit) fault("more shared memory than a block can have");
  block.arrays.push_back({key, name, offset, bytes});
  block.shared_used = offset + bytes;
  return block.shared + offset;
}
}  // namespace

void reset_shared() {
  std::memset(block.shared, 0xff, block.shared_used);  // NaN in every float type
  std::fill_n(block.shared_cells.begin(), block.shared_used / 2 + 1, Cell{});
  block.arrays.clear();
  block.shared_used = 0;
  if (launching->dynamic_shared) add_array(nullptr, "dynamic", launching->dynamic_shared);
}

void* static_shared(const void* key, const char* name, std::size_t bytes, std::size_t) {
  for (const SharedArray& a : block.arrays) {
    if (a.key == key) return block.shared + a.offset;
  }
  std::size_t total = bytes;
  for (const SharedArray& a : block.arrays) total += a.key ? a.bytes : 0;
  if (total > shared_default_limit) fault("more than 48 KiB of static shared memory");
  return add_array(key, name, bytes);
}

void* dynamic_shared() {
  if (!launching->dynamic_shared) fault("no dynamic shared memory was asked for at the launch");
  return block.shared + block.arrays[0].offset;
}

void allow_dynamic_shared(const void* kernel, std::size_t bytes) {
  if (bytes > shared_limit) throw Fault("allow_dynamic_shared: " + std::to_string(bytes) + " bytes, 232448 at most");
  shared_allowance[kernel] = bytes;
}

// ---- barriers and warps -------------------------------------------------------------------------------------------

int sync_threads_count(int predicate, Loc where) {
  current->where = where;
  for (const Thread& t : block.threads) {
    if (t.number >= block.thread_count) break;
    if (t.state == State::done) fault("barrier at " + describe(where) + " after thread " + text(t.index) + " ended");
    if (t.state == State::barrier) {
      if (t.where.line() != where.line() || t.where.column() != where.column() ||
          std::strcmp(t.where.file_name(), where.file_name()) != 0) {
        fault("barrier at " + describe(where) + " while thread " + text(t.index) + " waits at the barrier at " +
              describe(t.where));
      }
      break;  // the waiting ones agree among themselves
    }
  }
  block.predicate_sum += predicate != 0;
  if (++block.arrived < block.thread_count) {
    current->state = State::barrier;
    yield();
    return block.predicate_result;
  }
  block.arrived = 0;
  block.predicate_result = block.predicate_sum;
  block.predicate_sum = 0;
  for (int i = 0; i < block.thread_count; ++i) block.threads[i].state = State::ready;
  new_epoch();
  return block.predicate_result;
}

void sync_threads(Loc where) {
  sync_threads_count(0, where);
}

namespace {

enum { op_sync = 100, op_ballot, op_ldmatrix, op_mma };

// Waits for the lanes of `mask`; the last to come runs finish(collective) with every lane's payload.
template <class Finish>
void collective(unsigned mask, int kind, void* payload, Loc where, Finish finish) {
  const unsigned number = current->number;
  Warp& warp = block.warps[number / 32];
  const unsigned lane = number % 32;
  const int base = static_cast<int>(number - lane);
  if (!(mask >> lane & 1)) fault("warp operation at " + describe(where) + " with a mask that leaves the caller out");
  if (mask & ~warp.lanes) fault("warp operation at " + describe(where) + " with lanes that do not exist in its mask");
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1) && block.threads[base + l].state == State::done) {
      fault("warp operation at " + describe(where) + " waits for thread " + text(block.threads[base + l].index) +
            ", which has ended");
    }
  }
  std::size_t slot = 0;
  while (slot < warp.open.size() && warp.open[slot].mask != mask) ++slot;
  if (slot == warp.open.size()) {
    warp.open.push_back({mask, 0, kind, where, {}});
  } else if (warp.open[slot].kind != kind || warp.open[slot].where.line() != where.line()) {
    fault("warp operation at " + describe(where) + " while other lanes are at " + describe(warp.open[slot].where));
  }
  Collective& c = warp.open[slot];
  c.payload[lane] = payload;
  c.arrived |= 1u << lane;
  if (c.arrived != mask) {
    current->where = where;
    current->state = State::collective;
    yield();
    return;
  }
  finish(c);
  for (int l = 0; l < 32; ++l) {
    if (mask >> l & 1) block.threads[base + l].state = State::ready;
  }
  warp.open.erase(warp.open.begin() + static_cast<std::ptrdiff_t>(slot));
}

}  // namespace

void sync_warp(unsigned mask, Loc where) {
  Warp& warp = block.warps[current->number / 32];
  // A last warp with fewer threads: __syncwarp() with its default mask is common and harmless.
  collective(mask & warp.lanes, op_sync, nullptr, where, [&](Collective&) { warp.epoch = next_epoch++; });
}

namespace {
struct ShufflePayload {
  std::uint64_t value, result;
  int lane, width;
};
}  // namespace

std::uint64_t shuffle(unsigned mask, std::uint64_t value, int operand, int width, int kind, Loc where) {
  ShufflePayload mine{value, 0, operand, width};
  bool from_outside = false;
  collective(mask, kind, &mine, where, [&](Collective& c) {
    for (int l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      auto& p = *static_cast<ShufflePayload*>(c.payload[l]);
      const int first = l / p.width * p.width;
      int source = l;
      if (kind == shuffle_index) source = first + (p.lane & (p.width - 1));
      if (kind == shuffle_up && l - p.lane >= first) source = l - p.lane;
      if (kind == shuffle_down && l + p.lane < first + p.width) source = l + p.lane;
      if (kind == shuffle_xor && (l ^ p.lane) < first + p.width) source = l ^ p.lane;
      if (!(mask >> source & 1)) {
        from_outside = true;
        continue;
      }
      p.result = static_cast<ShufflePayload*>(c.payload[source])->value;
    }
  });
  if (from_outside) fault("shuffle at " + describe(where) + " from a lane outside its mask");
  return mine.result;
}

unsigned ballot(unsigned mask, bool predicate, Loc where) {
  struct Payload {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  collective(mask, op_ballot, &mine, where, [&](Collective& c) {
    unsigned votes = 0;
    for (int l = 0; l < 32; ++l) {
      if ((mask >> l & 1) && static_cast<Payload*>(c.payload[l])->predicate) votes |= 1u << l;
    }
    for (int l = 0; l < 32; ++l) {
      if (mask >> l & 1) static_cast<Payload*>(c.payload[l])->result = votes;
    }
  });
  return mine.result;
}

// ---- asynchronous copies and tensor cores -------------------------------------------------------------------------

void cp_async(void* shared, const void* global, int bytes, int source_bytes, Loc where) {
  const void* code = __builtin_return_address(0);
  const auto offset = static_cast<std::size_t>(static_cast<char*>(shared) - block.shared);
  if (offset >= shared_arena) fault("cp_async at " + describe(where) + ": the target is not in shared memory");
  if (reinterpret_cast<std::uintptr_t>(global) % bytes) fault("cp_async at " + describe(where) + ": misaligned source");
  check_access(shared, bytes, Access::write, bytes, code);
  if (source_bytes) check_access(global, source_bytes, Access::read, bytes, code);
  // The bytes arrive as late as they may: at the wait. Until then nobody may look.
  std::memset(shared, 0xff, bytes);
  mark_in_flight(shared, bytes);
  current->copies.emplace_back(current->group + 1, PendingCopy{shared, global, bytes, source_bytes});
}

void cp_async_commit() {
  ++current->group;
}
void cp_async_wait(int groups_left) {
  land_copies(groups_left);
}

namespace {
struct LdmatrixPayload {
  const void* row;
  std::uint32_t* registers;
};
struct MmaPayload {
  float* d;
  const std::uint32_t *a, *b;
};
constexpr unsigned full_mask = 0xffffffffu;
}  // namespace

void ldmatrix(std::uint32_t* registers, const void* row, int matrices, bool transposed, Loc where) {
  if (static_cast<int>(current->number % 32) < 8 * matrices) {
    const auto offset = static_cast<std::size_t>(static_cast<const char*>(row) - block.shared);
    if (offset >= shared_arena) fault("ldmatrix at " + describe(where) + ": the row is not in shared memory");
    check_access(row, 16, Access::read, 16, __builtin_return_address(0));
  }
  LdmatrixPayload mine{row, registers};
  collective(full_mask, op_ldmatrix, &mine, where, [&](Collective& c) {
    for (int l = 0; l < 32; ++l) {
      for (int m = 0; m < matrices; ++m) {
        std::uint16_t pair[2];
        for (int e = 0; e < 2; ++e) {
          const int r = transposed ? l % 4 * 2 + e : l / 4, col = transposed ? l / 4 : l % 4 * 2 + e;
          const auto* source = static_cast<const LdmatrixPayload*>(c.payload[8 * m + r])->row;
          pair[e] = static_cast<const std::uint16_t*>(source)[col];
        }
        static_cast<LdmatrixPayload*>(c.payload[l])->registers[m] = pair[0] | std::uint32_t{pair[1]} << 16;
      }
    }
  });
}

namespace {

float decode16(std::uint32_t word, int half_of_word, MmaKind kind) {
  const auto bits = static_cast<std::uint16_t>(word >> 16 * half_of_word);
  return kind == MmaKind::f16_k16 ? half_bits_to_float(bits) : bfloat16_bits_to_float(bits);
}

// Fragment layouts as the PTX manual gives them for mma.m16n8k16 (16-bit) and mma.m16n8k8 (tf32).
void gather(const Collective& c, MmaKind kind, float (&a)[16][16], float (&b)[16][8]) {
  for (int l = 0; l < 32; ++l) {
    const auto& p = *static_cast<const MmaPayload*>(c.payload[l]);
    const int g = l / 4, t = l % 4;
    if (kind == MmaKind::tf32_k8) {
      for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = __uint_as_float(p.a[i] & 0xffffe000u);
      for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = __uint_as_float(p.b[i] & 0xffffe000u);
      continue;
    }
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < 2; ++e) a[g + 8 * (i % 2)][2 * t + e + 8 * (i / 2)] = decode16(p.a[i], e, kind);
    }
    for (int i = 0; i < 2; ++i) {
      for (int e = 0; e < 2; ++e) b[2 * t + e + 8 * i][g] = decode16(p.b[i], e, kind);
    }
  }
}

}  // namespace

void mma(float* d, const std::uint32_t* a_registers, const std::uint32_t* b_registers, MmaKind kind, Loc where) {
  MmaPayload mine{d, a_registers, b_registers};
  collective(full_mask, op_mma + static_cast<int>(kind), &mine, where, [&](Collective& c) {
    float a[16][16], b[16][8];
    gather(c, kind, a, b);
    const int depth = kind == MmaKind::tf32_k8 ? 8 : 16;
    for (int l = 0; l < 32; ++l) {
      auto& p = *static_cast<MmaPayload*>(c.payload[l]);
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + 8 * (i / 2), column = l % 4 * 2 + i % 2;
        double sum = p.d[i];
        for (int k = 0; k < depth; ++k) sum += double{a[row][k]} * double{b[k][column]};
        p.d[i] = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace emu
