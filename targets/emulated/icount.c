/* Counts the aarch64 instructions that a guest executes, for qemu-user 7.2 (plugin API 1).

   The guest marks a moment with the system call getpriority(MARK, k), which fails without any effect. Each mark writes
   one line to qemu's log: k, then three numbers of instructions so far: all, SIMD and floating-point arithmetic, loads
   and stores. The counters are not atomic: only one thread may run at a time.

   Debian has no package with the header of the plugin API, so this file declares the parts it uses. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK 0x9e7
#define GETPRIORITY 141 /* on aarch64 */

typedef uint64_t id;
typedef struct qemu_info_t info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum operation { ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(id, void (*)(id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum operation, void *, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(id, void (*)(id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                       uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_outs(const char *);

EXPORT int qemu_plugin_version = 1;

static uint64_t total, simd, memory;

/* The groups of "A64 instruction set encoding" in the Arm Architecture Reference Manual, by bits 28 to 25. */
static int is_simd(uint32_t word) { return (word >> 25 & 7) == 7; }
static int is_memory(uint32_t word) { return (word >> 25 & 5) == 4; }

static void translated(id plugin, struct qemu_plugin_tb *block) {
  const size_t count = qemu_plugin_tb_n_insns(block);
  uint64_t simds = 0, memories = 0;
  (void)plugin;
  for (size_t i = 0; i < count; i++) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
    simds += is_simd(word);
    memories += is_memory(word);
  }
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &total, count);
  if (simds) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &simd, simds);
  if (memories) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &memory, memories);
}

static void called(id plugin, unsigned cpu, int64_t number, uint64_t which, uint64_t who, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  char line[100];
  (void)plugin, (void)cpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != GETPRIORITY || (uint32_t)which != MARK) return;
  snprintf(line, sizeof line, "%u %llu %llu %llu\n", (unsigned)who, (unsigned long long)total,
           (unsigned long long)simd, (unsigned long long)memory);
  qemu_plugin_outs(line);
}

EXPORT int qemu_plugin_install(id plugin, const info *host, int argc, char **argv) {
  (void)host, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(plugin, translated);
  qemu_plugin_register_vcpu_syscall_cb(plugin, called);
  return 0;
}
