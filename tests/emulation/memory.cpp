// Checks every load and store of a kernel. The compiler's -fsanitize=thread puts a call before each access
// (__tsan_read4 ...); these are our definitions of those calls, no sanitizer runtime is linked.
//
// An access is allowed on the thread's own stack, in arrays of the block's shared memory, in registered regions of
// global memory, and (reads) in constants. It must be aligned to its size, must not read what nobody wrote, and must
// not race: two threads, at least one writing, with no barrier between them.

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>

#include "runtime.h"

namespace emu {

std::vector<Region> regions;
bool checking = false;

namespace {

constexpr std::uint16_t no_thread = 0xffff;
std::vector<Buffer> operation;

std::string thread_name(std::uint16_t number) {
  const unsigned x = block.size.x, y = block.size.y;
  return "(" + std::to_string(number % x) + "," + std::to_string(number / x % y) + "," +
         std::to_string(number / (x * y)) + ")";
}

// Whether something done by `thread` at the given epochs is unordered with the current thread's doing.
bool unordered(std::uint32_t epoch, std::uint32_t warp_epoch, std::uint16_t thread) {
  if (epoch < block.launch_epoch || thread == no_thread) return false;
  if (epoch < block.first_epoch) return true;  // another block of this launch
  if (epoch != block.epoch || thread == current->number) return false;
  const bool same_warp = thread / 32 == current->number / 32;
  return !same_warp || warp_epoch == block.warps[current->number / 32].epoch;
}

struct Place {
  const char* space;
  std::string name;
  std::size_t offset, size;
};

std::string describe(const Place& place) {
  return std::string(place.space) + " " + place.name + " at byte " + std::to_string(place.offset) + " of " +
         std::to_string(place.size);
}

std::string other(std::uint32_t epoch, std::uint16_t thread) {
  return epoch < block.first_epoch ? "another block" : "thread " + thread_name(thread);
}

void race(const char* what, std::uint32_t epoch, std::uint16_t thread, const Place& place, const void* code) {
  fault(
      std::string("race: ") + what + " by " + other(epoch, thread) + " with no barrier between, in " + describe(place),
      code);
}

// Checks and records an access to cells first..last. Place is made lazily: it is needed for messages only.
template <class MakePlace>
void touch(Cell* cells, std::size_t first, std::size_t last, Access access, const void* code, MakePlace place) {
  const std::uint32_t warp_epoch = block.warps[current->number / 32].epoch;
  for (std::size_t i = first; i <= last; ++i) {
    Cell& c = cells[i];
    if (c.in_flight) fault("access to a cp.async target before cp_async_wait, in " + describe(place()), code);
    const bool both_atomic = access == Access::atomic && c.atomic;
    if (access != Access::write && !c.initialised) {
      fault("read of uninitialised memory, in " + describe(place()), code);
    }
    if (!both_atomic && unordered(c.write_epoch, c.write_warp_epoch, c.write_thread)) {
      race(access == Access::read ? "read of what was written" : "write over what was written", c.write_epoch,
           c.write_thread, place(), code);
    }
    if (access == Access::read) {
      const bool fresh_reader = !unordered(c.read_epoch, c.read_warp_epoch, c.read_thread);
      if (fresh_reader || c.read_thread == current->number) {
        const bool other_blocks = c.many_readers == 3 && c.read_epoch >= block.launch_epoch;
        if (fresh_reader && !other_blocks) c.many_readers = 0;
        c.read_thread = current->number;
      } else {
        // Unordered readers (1: of one warp, 2: of several, 3: of several blocks): a later write by any of
        // them races with the others.
        const bool same_warp = c.read_thread / 32 == current->number / 32;
        const int kind = c.read_epoch < block.first_epoch ? 3 : same_warp ? 1 : 2;
        c.many_readers = static_cast<std::uint8_t>(std::max<int>(c.many_readers, kind));
      }
      c.read_epoch = block.epoch;
      c.read_warp_epoch = warp_epoch;
    } else {
      bool raced = !both_atomic && unordered(c.read_epoch, c.read_warp_epoch, c.read_thread);
      if (!both_atomic && c.many_readers == 3) raced = raced || c.read_epoch >= block.launch_epoch;
      if (!both_atomic && c.many_readers && c.read_epoch == block.epoch) {
        raced = raced || c.many_readers == 2 || c.read_warp_epoch == warp_epoch;
      }
      if (raced) race("write to what was read", c.read_epoch, c.read_thread, place(), code);
      c.write_epoch = block.epoch;
      c.write_warp_epoch = warp_epoch;
      c.write_thread = current->number;
      c.initialised = 1;
      c.atomic = access == Access::atomic;
    }
  }
}

// Loaded images' address ranges: constants live there.
bool in_loaded_image(std::uintptr_t address) {
  static const auto ranges = [] {
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> result;
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* out) {
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& h = info->dlpi_phdr[i];
            if (h.p_type != PT_LOAD) continue;
            static_cast<decltype(result)*>(out)->emplace_back(info->dlpi_addr + h.p_vaddr,
                                                              info->dlpi_addr + h.p_vaddr + h.p_memsz);
          }
          return 0;
        },
        &result);
    std::sort(result.begin(), result.end());
    return result;
  }();
  auto it = std::upper_bound(ranges.begin(), ranges.end(), std::pair{address, ~std::uintptr_t{0}});
  return it != ranges.begin() && address < std::prev(it)->second;
}

Region* find_region(std::uintptr_t address) {
  static std::size_t last = 0;
  if (last < regions.size() && address >= regions[last].begin && address < regions[last].end) return &regions[last];
  auto it = std::upper_bound(regions.begin(), regions.end(), address,
                             [](std::uintptr_t a, const Region& r) { return a < r.begin; });
  if (it == regions.begin()) return nullptr;
  --it;
  last = static_cast<std::size_t>(it - regions.begin());
  return &*it;  // the nearest one at or below the address; it need not hold it
}

[[noreturn]] void outside(std::uintptr_t address, std::size_t bytes, Access access, const void* code) {
  std::string message = "out-of-bounds " + std::to_string(bytes) + "-byte " +
                        (access == Access::read    ? "read"
                         : access == Access::write ? "write"
                                                   : "atomic");
  const Region* region = find_region(address);
  if (region) {
    message += ", " + std::to_string(address - region->begin) + " bytes after the start of " + region->name + " (" +
               std::to_string(region->end - region->begin) + " bytes)";
  } else if (!regions.empty()) {
    message += ", " + std::to_string(regions[0].begin - address) + " bytes before " + regions[0].name;
  }
  fault(message, code);
}

}  // namespace

// std functions that both this file and the kernels instantiate may be the kernels' instrumented copies: while a check
// runs, the announcements are ignored.
struct Inside {
  Inside() { checking = true; }
  ~Inside() { checking = false; }
};

void check_access(const void* pointer, std::size_t bytes, Access access, std::size_t alignment, const void* code) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address - reinterpret_cast<std::uintptr_t>(current->stack) < stack_bytes) return;
  const Inside inside;
  if (address % alignment != 0) {
    fault("misaligned " + std::to_string(bytes) + "-byte access, address % " + std::to_string(alignment) + " = " +
              std::to_string(address % alignment),
          code);
  }
  const std::size_t offset = address - reinterpret_cast<std::uintptr_t>(block.shared);
  if (offset < shared_arena) {
    for (const SharedArray& a : block.arrays) {
      if (offset < a.offset || offset + bytes > a.offset + a.bytes) continue;
      touch(block.shared_cells.data(), offset / 2, (offset + bytes - 1) / 2, access, code,
            [&] { return Place{"shared array", a.name, offset - a.offset, a.bytes}; });
      return;
    }
    std::string message = "out-of-bounds " + std::to_string(bytes) + "-byte access to shared memory";
    for (const SharedArray& a : block.arrays) {
      if (offset >= a.offset && offset < a.offset + a.bytes + shared_guard) {
        message += ", " + std::to_string(offset - a.offset) + " bytes after the start of " + a.name + " (" +
                   std::to_string(a.bytes) + " bytes)";
      }
    }
    fault(message, code);
  }
  Region* region = find_region(address);
  if (region && address + bytes <= region->end) {
    const std::size_t first = address / 2 - region->begin / 2;
    touch(region->cells.data(), first, (address + bytes - 1) / 2 - region->begin / 2, access, code,
          [&] { return Place{"buffer", region->name, address - region->begin, region->end - region->begin}; });
    return;
  }
  if (access == Access::read) {
    const auto arguments = reinterpret_cast<std::uintptr_t>(launching->arguments);
    if (address - arguments < 8192) return;  // kernel parameters
    if (in_loaded_image(address)) return;
  }
  outside(address, bytes, access, code);
}

void begin_operation(std::vector<Buffer> buffers) {
  std::sort(buffers.begin(), buffers.end(), [](const Buffer& a, const Buffer& b) { return a.begin < b.begin; });
  operation = buffers;
  regions.clear();
  for (const Buffer& b : buffers) {
    if (b.bytes == 0) continue;
    if (regions.empty() || b.begin >= regions.back().end) {
      regions.push_back({b.begin, b.begin, b.name, {}});
    } else if (regions.back().name != b.name) {
      regions.back().name += "/" + b.name;  // overlapping views
    }
    Region& r = regions.back();
    r.end = std::max(r.end, b.begin + b.bytes);
    r.cells.resize((r.end - 1) / 2 - r.begin / 2 + 1);
  }
  for (const Buffer& b : buffers) {
    if (b.bytes == 0) continue;
    if (b.fresh) {
      std::memset(reinterpret_cast<void*>(b.begin), 0xff, b.bytes);
      continue;
    }
    Region& r = *find_region(b.begin);
    for (std::size_t i = b.begin / 2; i <= (b.begin + b.bytes - 1) / 2; ++i) r.cells[i - r.begin / 2].initialised = 1;
  }
}

void end_operation(bool check_written) {
  const auto buffers = std::move(operation);
  operation.clear();
  std::string message;
  for (const Buffer& b : buffers) {
    if (!check_written || !b.fresh || b.bytes == 0 || !message.empty()) continue;
    const Region& r = *find_region(b.begin);
    for (std::size_t i = b.begin / 2; i <= (b.begin + b.bytes - 1) / 2; ++i) {
      if (r.cells[i - r.begin / 2].initialised) continue;
      message = "unwritten output: " + b.name + " at byte " + std::to_string(i * 2 - b.begin) + " of " +
                std::to_string(b.bytes) + ", after kernel " + last_kernel;
      break;
    }
  }
  regions.clear();
  if (!message.empty()) throw Fault(message);
}

void mark_in_flight(const void* shared, std::size_t bytes) {
  const std::size_t offset = static_cast<std::size_t>(static_cast<const char*>(shared) - block.shared);
  for (std::size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) block.shared_cells[i].in_flight = 1;
}

// "file:line" of a code address, by addr2line where it is installed.
std::string source_line(const void* code) {
  Dl_info info;
  if (!code || !dladdr(code, &info) || !info.dli_fname) return {};
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[4096], line[4096] = "";
  std::snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<std::size_t>(offset));
  if (FILE* pipe = popen(command, "r")) {
    if (!std::fgets(line, sizeof line, pipe)) line[0] = 0;
    pclose(pipe);
  }
  std::string text(line);
  if (const auto end = text.find_first_of(" \n"); end != std::string::npos) text.resize(end);
  if (text.empty() || text[0] == '?') return {};
  const auto slash = text.rfind('/');
  return slash == std::string::npos ? text : text.substr(slash + 1);
}

void atomic_access(void* address, std::size_t bytes) {
  if (current) check_access(address, bytes, Access::atomic, bytes, __builtin_return_address(0));
}

void store_access(void* address, std::size_t bytes) {
  if (current) check_access(address, bytes, Access::write, bytes, __builtin_return_address(0));
}

}  // namespace emu

// ---- what the instrumented code calls ---------------------------------------------------------------------------

#define EMU_HOOKS(size)                                                                  \
  extern "C" void __tsan_read##size(void* p) {                                           \
    if (emu::current && !emu::checking)                                                  \
      emu::check_access(p, size, emu::Access::read, size, __builtin_return_address(0));  \
  }                                                                                      \
  extern "C" void __tsan_write##size(void* p) {                                          \
    if (emu::current && !emu::checking)                                                  \
      emu::check_access(p, size, emu::Access::write, size, __builtin_return_address(0)); \
  }
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
#undef EMU_HOOKS

extern "C" {
void __tsan_read_range(void* p, std::size_t bytes) {
  if (emu::current && !emu::checking && bytes)
    emu::check_access(p, bytes, emu::Access::read, 1, __builtin_return_address(0));
}
void __tsan_write_range(void* p, std::size_t bytes) {
  if (emu::current && !emu::checking && bytes)
    emu::check_access(p, bytes, emu::Access::write, 1, __builtin_return_address(0));
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// The guard of a static variable of the host code.
std::uint8_t __tsan_atomic8_load(const std::uint8_t* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
void __tsan_vptr_update(void*, void*) {}

// -fsanitize=bounds: an index past the end of an array of known size, inner dimensions included.
struct SourceLocation {
  const char* file;
  std::uint32_t line, column;
};
void __ubsan_handle_out_of_bounds(SourceLocation* where, std::uintptr_t index) {
  if (emu::current && !emu::checking) {
    emu::fault("array index " + std::to_string(index) + " out of bounds at " + where->file + ":" +
               std::to_string(where->line));
  }
}
void __ubsan_handle_out_of_bounds_abort(SourceLocation* where, std::uintptr_t index) {
  __ubsan_handle_out_of_bounds(where, index);
}
}
