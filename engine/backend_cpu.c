/* backend_cpu: kernels run when called, in the caller's memory; sync has nothing to wait for. Big allocations
 * are fresh anonymous maps: zero without being touched, so cells of a cache that no sequence reaches cost
 * nothing. */
#include "engine/backend_cpu_group.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "kernels/cpu.h"
#include "kernels/read.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64, MAP_FROM_BYTES = 1 << 20, PREFILL_ROWS = 128 };

struct block {
    void *p;
    size_t bytes;
    int mapped;
};

struct cpu {
    const struct cpu_kernels *kernels;
    struct block *blocks; /* owned [n], each owned */
    int n, cap;
    int64_t marks[BACKEND_MARKS];
};

static struct cpu *cpu_of(const struct backend *be)
{
    return be->self;
}

/* The processor's name as Linux tells it, "CPU" where it does not. */
static void read_cpu_name(char *out, size_t cap)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, cap, "CPU");
    while (f && fgets(line, sizeof line, f)) {
        const char *value = strchr(line, ':');
        if (value && strncmp(line, "model name", 10) == 0) {
            value += 1 + strspn(value + 1, " \t");
            snprintf(out, cap, "%.*s", (int)strcspn(value, "\n"), value);
            break;
        }
    }
    if (f)
        fclose(f);
}

static void cpu_describe(FILE *out)
{
    char name[80];
    int cores = 0;
    const double gib = (double)sysconf(_SC_PAGESIZE) / (1 << 30);
    read_cpu_name(name, sizeof name);
    backend_threads(&(struct backend_opts){.threads = 0}, &cores);
    fprintf(out, "cpu: %s\n    %d core%s, %.1f GiB of memory, %.1f GiB free\n    kernels:", name, cores,
            cores == 1 ? "" : "s", gib * (double)sysconf(_SC_PHYS_PAGES),
            gib * (double)sysconf(_SC_AVPHYS_PAGES));
    for (int i = 0; cpu_kernels_at(i); i++)
        fprintf(out, " %s", cpu_kernels_at(i)->name);
    fputc('\n', out);
}

static int find_kernels(const char *isa, const struct cpu_kernels **out)
{
    char names[128] = "auto";
    size_t at = strlen(names);
    *out = cpu_kernels_find(isa ? isa : "auto");
    if (*out)
        return 0;
    for (int i = 0; cpu_kernels_at(i) && at < sizeof names; i++)
        at += (size_t)snprintf(names + at, sizeof names - at, ", %s", cpu_kernels_at(i)->name);
    FAIL(ERR_CONFIG, "instruction set '%s': this machine has: %s", isa, names);
}

/* Of the last level, as Linux tells it, 0 where it does not. */
static size_t cache_bytes(void)
{
    size_t kib = 0;
    for (int level = 3; level >= 2 && kib == 0; level--) {
        char path[64];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", level);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%zuK", &kib) != 1)
            kib = 0;
        if (f)
            fclose(f);
    }
    return kib << 10;
}

static int cpu_open(struct backend *be, const struct backend_opts *opts)
{
    char name[80];
    const struct cpu_kernels *kernels = NULL;
    int threads = 0;
    TRY(backend_threads(opts, &threads));
    TRY(find_kernels(opts->isa, &kernels));
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        FAIL(ERR_MEMORY, "cpu backend: out of memory");
    cpu->kernels = kernels;
    be->self = cpu;
    be->prefill_rows = PREFILL_ROWS;
    be->host_reads = 1;
    be->cache_bytes = cache_bytes();
    be->threads = threads;
    read_cpu_name(name, sizeof name);
    snprintf(be->isa, sizeof be->isa, "%s", kernels->name);
    snprintf(be->device, sizeof be->device, "%s (%s, %d thread%s)", name, kernels->name, be->threads,
             be->threads == 1 ? "" : "s");
    return 0;
}

static void free_block(const struct block *b)
{
    if (b->mapped)
        munmap(b->p, b->bytes);
    else
        free(b->p);
}

static void cpu_close(struct backend *be)
{
    struct cpu *cpu = cpu_of(be);
    for (int i = 0; cpu && i < cpu->n; i++)
        free_block(&cpu->blocks[i]);
    if (cpu)
        free(cpu->blocks);
    free(cpu);
    be->self = NULL;
}

static int reserve_block(struct cpu *cpu)
{
    if (cpu->n < cpu->cap)
        return 0;
    int cap = cpu->cap ? 2 * cpu->cap : 64;
    struct block *grown = realloc(cpu->blocks, (size_t)cap * sizeof *grown);
    if (!grown)
        FAIL(ERR_MEMORY, "cpu backend: out of memory for a list of %d allocations", cap);
    cpu->blocks = grown;
    cpu->cap = cap;
    return 0;
}

static int cpu_alloc(struct backend *be, size_t bytes, void **out)
{
    struct cpu *cpu = cpu_of(be);
    struct block b = {.mapped = bytes >= MAP_FROM_BYTES};
    be->allocs++;
    TRY(reserve_block(cpu));
    b.bytes = bytes < ALIGN ? ALIGN : (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (b.bytes < bytes)
        FAIL(ERR_MEMORY, "cpu backend: cannot allocate %zu bytes: more than an address can say", bytes);
    if (b.mapped) {
        b.p = mmap(NULL, b.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (b.p == MAP_FAILED)
            FAIL(ERR_MEMORY, "cpu backend: cannot allocate %zu bytes: %s", bytes, strerror(errno));
    } else {
        b.p = aligned_alloc(ALIGN, b.bytes);
        if (!b.p)
            FAIL(ERR_MEMORY, "cpu backend: cannot allocate %zu bytes: out of memory", bytes);
        memset(b.p, 0, b.bytes);
    }
    cpu->blocks[cpu->n++] = b;
    be->allocated += b.bytes;
    *out = b.p;
    return 0;
}

static void cpu_release(struct backend *be, void *p)
{
    struct cpu *cpu = cpu_of(be);
    for (int i = cpu->n - 1; p && i >= 0; i--)
        if (cpu->blocks[i].p == p) {
            free_block(&cpu->blocks[i]);
            be->allocated -= cpu->blocks[i].bytes;
            cpu->blocks[i] = cpu->blocks[--cpu->n];
            return;
        }
}

/* Untouched pages of a map cost nothing, so what is free now is no limit. */
static size_t cpu_available(struct backend *be)
{
    (void)be;
    return SIZE_MAX;
}

static int cpu_copy(struct backend *be, void *dst, const void *src, size_t bytes)
{
    (void)be;
    memcpy(dst, src, bytes);
    return 0;
}

/* Weights are read from end to end each step: huge pages save the page walks. Where there are none, nothing
 * is lost. FP8 numbers stand in bf16: on the CPU they are about accuracy, not about room. */
static int cpu_matrix(struct backend *be, struct matrix *w, const struct matrix_source *from)
{
    void *data = NULL, *scale = NULL;
    const int n = matrix_source_n(from);
    size_t bytes = matrix_packed_bytes(n, from->k);
    TRY(cpu_alloc(be, bytes, &data));
    const int rc = from->form == MATRIX_FP8 ? cpu_alloc(be, (size_t)n * sizeof(float), &scale) : 0;
    if (rc) {
        cpu_release(be, data);
        return rc;
    }
    if (bytes >= MAP_FROM_BYTES)
        madvise(data, bytes, MADV_HUGEPAGE);
    *w = (struct matrix){.n = n, .k = from->k, .form = from->form, .data = data, .scale = scale};
    matrix_pack_from(w, from, be->threads);
    return 0;
}

static size_t cpu_act_bytes(const struct backend *be, int rows, int k)
{
    (void)be;
    return (size_t)rows * (size_t)k * sizeof(float);
}

static size_t cpu_gemm_bytes(const struct backend *be, int rows, int n, int k)
{
    (void)rows;
    (void)n;
    return (size_t)be->threads * gemm_scratch(k) * sizeof(float);
}

/* FP8 cells stand in f32: the CPU's cache is about what they do to results, not about room. */
static size_t cpu_kv_bytes(const struct backend *be, enum kv_form form)
{
    (void)be;
    (void)form;
    return sizeof(float);
}

static size_t cpu_attention_bytes(const struct backend *be, int rows, int heads, int kv_heads, int head_dim,
                                  int cap)
{
    (void)rows;
    return (size_t)be->threads * attention_scratch(heads, kv_heads, head_dim, cap) * sizeof(float);
}

static size_t cpu_moe_bytes(const struct backend *be, int rows, int hidden, int ffn, int experts, int top_k)
{
    (void)be;
    (void)experts;
    (void)top_k;
    return moe_scratch(rows, hidden, ffn);
}

static const struct cpu_kernels *launch(struct backend *be)
{
    be->launches++;
    return cpu_of(be)->kernels;
}

static int cpu_embed(struct backend *be, const struct embed *a)
{
    be->launches++;
    embed_ref(a);
    return 0;
}

static int cpu_rmsnorm(struct backend *be, const struct rmsnorm *a)
{
    launch(be)->rmsnorm(a);
    return 0;
}

static int cpu_gemm(struct backend *be, const struct gemm *a)
{
    launch(be)->gemm(a);
    return 0;
}

static int cpu_swiglu(struct backend *be, const struct gemm *a)
{
    launch(be)->swiglu(a);
    return 0;
}

static int cpu_rope_table(struct backend *be, const struct rows *rows, const float *inv_freq, int head_dim,
                          float *cos_sin)
{
    be->launches++;
    rope_table(rows, inv_freq, head_dim, cos_sin);
    return 0;
}

static int cpu_residual(struct backend *be, const struct residual *a)
{
    launch(be)->gemm(&a->product);
    launch(be)->rmsnorm(&a->norm);
    return 0;
}

static int cpu_qkv(struct backend *be, const struct qkv *a)
{
    launch(be)->gemm(&a->product);
    launch(be)->rope(&a->rope);
    return 0;
}

static int cpu_quantise(struct backend *be, const struct quantise *a)
{
    be->launches++;
    quantise_ref(a);
    return 0;
}

static int cpu_attention(struct backend *be, const struct attention *a)
{
    launch(be)->attention(a);
    return 0;
}

static int cpu_rope_temperature(struct backend *be, const struct temperature *a)
{
    be->launches++;
    rope_temperature(a);
    return 0;
}

static int cpu_route(struct backend *be, const struct route *a)
{
    launch(be)->route(a);
    return 0;
}

static int cpu_moe(struct backend *be, const struct moe *a)
{
    launch(be)->moe(a);
    return 0;
}

static int cpu_kv_move(struct backend *be, const struct kv_move *a)
{
    be->launches++;
    kv_move_ref(a);
    return 0;
}

static int cpu_logits(struct backend *be, const struct logits *a)
{
    launch(be)->logits(a);
    return 0;
}

static void stamp_first(int64_t *begin)
{
    if (*begin == 0)
        *begin = clock_ns();
}

static int cpu_ngram(struct backend *be, const struct ngram *a)
{
    be->launches++;
    stamp_first(a->begin);
    ngram_ref(a);
    return 0;
}

static int cpu_step_plan(struct backend *be, const struct step *s, int rows)
{
    be->launches++;
    stamp_first(&s->clock[STEP_BEGIN]);
    step_plan_ref(s, rows);
    s->clock[STEP_VERIFY] = clock_ns();
    return 0;
}

static int cpu_step_commit(struct backend *be, const struct step_commit *a)
{
    be->launches++;
    step_commit_ref(a);
    step_publish_ref(a, clock_ns());
    return 0;
}

static int cpu_stamp(struct backend *be, int64_t *at)
{
    (void)be;
    *at = clock_ns();
    return 0;
}

static size_t cpu_accept_bytes(const struct backend *be, int slots, int max_nodes, int vocab)
{
    (void)be;
    (void)slots;
    (void)max_nodes;
    return accept_bytes(vocab);
}

static int cpu_accept(struct backend *be, const struct accept *a)
{
    be->launches++;
    if (a->began)
        *a->began = clock_ns();
    accept_ref(a);
    return 0;
}

static int cpu_node_stats(struct backend *be, const struct node_stats *a)
{
    be->launches++;
    node_stats_ref(a);
    return 0;
}

static int cpu_read(struct backend *be, const void *data, size_t bytes, uint64_t *sum)
{
    *sum = read_memory(&(struct read){.data = data, .bytes = bytes, .threads = be->threads});
    return 0;
}

static int cpu_pass_begin(struct backend *be, struct pass_key key, int *recorded)
{
    (void)be;
    (void)key;
    *recorded = 0;
    return 0;
}

static int cpu_pass_end(struct backend *be, int error)
{
    (void)be;
    return error;
}

static void cpu_pass_forget(struct backend *be, const void *owner)
{
    (void)be;
    (void)owner;
}

static int cpu_sync(struct backend *be)
{
    (void)be;
    return 0;
}

static int cpu_poll(struct backend *be, int *idle)
{
    (void)be;
    *idle = 1;
    return 0;
}

static int cpu_mark(struct backend *be, int i)
{
    cpu_of(be)->marks[i] = clock_ns();
    return 0;
}

static int cpu_marks(struct backend *be, int n, int64_t *ns)
{
    memcpy(ns, cpu_of(be)->marks, (size_t)n * sizeof *ns);
    return 0;
}

/* Cores have a clock each, and none that can be asked for everywhere. */
static void cpu_clocks(struct backend *be, struct backend_clocks *out)
{
    (void)be;
    *out = (struct backend_clocks){.mhz = 0};
}

static int cpu_rival_ask(struct backend *be, struct rival *a)
{
    (void)be;
    a->choices = 0;
    a->bytes = 0;
    return 0;
}

static int cpu_rival(struct backend *be, const struct rival *a)
{
    (void)a;
    FAIL(ERR_LIMIT, "%s has no library of products to compare with", be->device);
}

const struct backend_ops backend_cpu = {
    .name = "cpu",
    .describe = cpu_describe,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .alloc_host = cpu_alloc,
    .release = cpu_release,
    .available = cpu_available,
    .upload = cpu_copy,
    .download = cpu_copy,
    .matrix = cpu_matrix,
    .act_bytes = cpu_act_bytes,
    .gemm_bytes = cpu_gemm_bytes,
    .kv_bytes = cpu_kv_bytes,
    .attention_bytes = cpu_attention_bytes,
    .moe_bytes = cpu_moe_bytes,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .gemm = cpu_gemm,
    .swiglu = cpu_swiglu,
    .rope_table = cpu_rope_table,
    .residual = cpu_residual,
    .qkv = cpu_qkv,
    .quantise = cpu_quantise,
    .rope_temperature = cpu_rope_temperature,
    .attention = cpu_attention,
    .route = cpu_route,
    .moe = cpu_moe,
    .kv_move = cpu_kv_move,
    .logits = cpu_logits,
    .join = cpu_join,
    .reduce = cpu_reduce,
    .gather = cpu_gather,
    .ngram = cpu_ngram,
    .step_plan = cpu_step_plan,
    .step_commit = cpu_step_commit,
    .stamp = cpu_stamp,
    .accept_bytes = cpu_accept_bytes,
    .accept = cpu_accept,
    .node_stats = cpu_node_stats,
    .read = cpu_read,
    .pass_begin = cpu_pass_begin,
    .pass_end = cpu_pass_end,
    .pass_forget = cpu_pass_forget,
    .sync = cpu_sync,
    .poll = cpu_poll,
    .mark = cpu_mark,
    .marks = cpu_marks,
    .clocks = cpu_clocks,
    .rival_ask = cpu_rival_ask,
    .rival = cpu_rival,
};
