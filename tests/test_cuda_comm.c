/* test_cuda_comm: ranks of a group on GPUs, by way of the backend. Ranks are threads; where there are fewer
 * GPUs than ranks they share. What a rank finds wrong it writes down, because only the main thread may fail a
 * test. */
#include "engine/backend.h"
#include "engine/err.h"
#include "kernels/act.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WHY = 1024, ROWS = 64, WIDTH = 5120, NUMBERS = ROWS * WIDTH, MANY = 256 * WIDTH };
#define PATIENCE_S 20.0
#define EPS        1e-5f

/* Worlds, and on how many GPUs. */
static const struct {
    int world, gpus;
} worlds[] = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {8, 1}, {2, 2}, {4, 2}};
enum { WORLDS = sizeof worlds / sizeof *worlds };

struct rank {
    struct comm comm;
    struct backend be;
    const void *arg;
    int gpus, numbers;          /* of its largest part */
    int (*run)(struct rank *r); /* 0, or 1 with why */
    char why[WHY];
    double seconds;                                        /* that run took */
    float *part, *y, *gain, *square, *norm_square, *scale; /* device, room for `numbers` */
    void *act, *norm_act, *checksum;
    float *parts[COMM_WORLD_MAX]; /* host: what every rank has */
    float *host, *want;
};

static __attribute__((format(printf, 2, 3))) int wrong(struct rank *r, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(r->why, WHY, fmt, args);
    va_end(args);
    return 1;
}

#define OK(r, call)                                                                                          \
    do {                                                                                                     \
        if (call)                                                                                            \
            return wrong((r), "%s: %s", #call, err_text());                                                  \
    } while (0)

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Between -4 and 4, some of it tiny, zero or minus zero. */
static float number(int rank, int round, int i)
{
    uint32_t h = (uint32_t)i * 0x9E3779B9u ^ (uint32_t)(rank * 8191 + round) * 0x85EBCA6Bu;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    h ^= h >> 15;
    const float x = ((float)(h >> 8) - 0x1p23f) * 0x1p-21f;
    return h % 61 == 0 ? -0.0f : h % 61 == 1 ? x * 0x1p-120f : x;
}

/* Alone, every part is its own. */
static void fill_parts(struct rank *r, int round, int n)
{
    for (int p = 0; p < r->comm.world; p++)
        for (int i = 0; i < n; i++)
            r->parts[p][i] = number(r->comm.group ? p : r->comm.rank, round, i);
}

static int init_rank(struct rank *r)
{
    struct backend *be = &r->be;
    const size_t bytes = (size_t)r->numbers * sizeof(float);
    OK(r,
       backend_open(be, "cuda",
                    &(struct backend_opts){.threads = 1, .isa = "auto", .device = r->comm.rank % r->gpus}));
    void **const device[] = {(void **)&r->part, (void **)&r->y, (void **)&r->square, (void **)&r->norm_square,
                             &r->act,           &r->norm_act,   (void **)&r->gain,   (void **)&r->scale,
                             &r->checksum};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        OK(r, be->ops->alloc(be, bytes, device[i]));
    for (int p = 0; p < r->comm.world; p++)
        r->parts[p] = malloc(bytes);
    r->host = malloc(bytes);
    r->want = malloc(bytes);
    for (int i = 0; i < 2 * WIDTH; i++)
        r->host[i] = number(77, 0, i);
    OK(r, be->ops->upload(be, r->gain, r->host, 2 * WIDTH * sizeof(float)));
    OK(r, be->ops->join(be, &r->comm, bytes));
    return 0;
}

static void *rank_main(void *p)
{
    struct rank *r = p;
    int rc = init_rank(r);
    if (rc)
        comm_fail(&r->comm);
    const double began = now();
    if (rc == 0 && r->run(r)) {
        ERR_SET(ERR_DEVICE, "%s", r->why);
        comm_fail(&r->comm);
    }
    r->seconds = now() - began;
    backend_close(&r->be);
    for (int q = 0; q < r->comm.world; q++)
        free(r->parts[q]);
    free(r->host), free(r->want);
    return NULL;
}

/* 0 when there are not as many GPUs. */
static int enough(int gpus)
{
    int there = 0;
    cudaGetDeviceCount(&there);
    if (there < gpus)
        printf("skipped: %d GPUs wanted, %d found\n", gpus, there);
    return there >= gpus;
}

/* ranks hold what all of them have in common. */
static void run_ranks(struct rank *ranks, int world, double patience_s)
{
    const struct rank all = ranks[0];
    struct comm_group *g = NULL;
    pthread_t thread[COMM_WORLD_MAX];
    ck_assert_int_eq(comm_group_open(&g, world, patience_s), 0);
    for (int p = 0; p < world; p++) {
        ranks[p] = all;
        ranks[p].comm = comm_of(g, p);
        ck_assert_int_eq(pthread_create(&thread[p], NULL, rank_main, &ranks[p]), 0);
    }
    for (int p = 0; p < world; p++)
        pthread_join(thread[p], NULL);
    comm_group_close(g);
}

static void run_all(int world, int gpus, int numbers, int (*run)(struct rank *r), const void *arg)
{
    struct rank ranks[COMM_WORLD_MAX] = {{.run = run, .arg = arg, .gpus = gpus, .numbers = numbers}};
    char why[COMM_WORLD_MAX * (WHY + 32)] = "";
    size_t at = 0;
    run_ranks(ranks, world, PATIENCE_S);
    for (int p = 0; p < world; p++)
        if (ranks[p].why[0])
            at += (size_t)snprintf(why + at, sizeof why - at, "\nrank %d: %s", p, ranks[p].why);
    ck_assert_msg(!at, "world %d on %d GPUs:%s", world, gpus, why);
}

/* ---- reduce ---- */

struct shape {
    int rows, n;
};

static struct rmsnorm norm_of(const struct rank *r, struct shape s, enum act_form form)
{
    return (struct rmsnorm){
        .x = r->y, .w = r->gain, .y = {r->act, r->square, form}, .rows = s.rows, .dim = s.n, .eps = EPS};
}

static struct reduce reduce_of(const struct rank *r, struct shape s, enum wire wire, enum reduce_path path)
{
    return (struct reduce){.part = r->part,
                           .y = r->y,
                           .norm = norm_of(r, s, wire == WIRE_F32 ? ACT_BF16 : ACT_F16),
                           .rows = s.rows,
                           .n = s.n,
                           .wire = wire,
                           .path = path};
}

/* Bits, but for a NaN's. */
static int same(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

static int expect_floats(struct rank *r, const char *what, const float *at, const float *want, int n)
{
    OK(r, r->be.ops->download(&r->be, r->host, at, (size_t)n * sizeof(float)));
    OK(r, r->be.ops->sync(&r->be));
    for (int i = 0; i < n; i++)
        if (!same(r->host[i], want[i]))
            return wrong(r, "%s: number %d of %d is %a, expected %a (own part %a)", what, i, n,
                         (double)r->host[i], (double)want[i], (double)r->parts[r->comm.rank][i]);
    return 0;
}

/* Of what reduce left, the bytes that rmsnorm makes of the same y. */
static int expect_norm(struct rank *r, const char *what, struct rmsnorm norm)
{
    const struct backend_ops *ops = r->be.ops;
    const size_t act = ops->act_bytes(&r->be, norm.rows, norm.dim),
                 square = (size_t)norm.rows * (size_t)((norm.dim + 15) / 16) * sizeof(float);
    norm.y.act = r->norm_act;
    norm.y.square = r->norm_square;
    OK(r, ops->rmsnorm(&r->be, &norm));
    OK(r, ops->download(&r->be, r->host, r->act, act));
    OK(r, ops->download(&r->be, r->want, r->norm_act, act));
    OK(r, ops->sync(&r->be));
    const uint16_t *got = (const uint16_t *)r->host, *want = (const uint16_t *)r->want;
    for (size_t i = 0; norm.bulk && i < (size_t)norm.rows * (size_t)norm.dim; i++)
        if (got[i] != want[i])
            return wrong(r, "%s: act %zu is %04x, rmsnorm's is %04x", what, i, got[i], want[i]);
    if (norm.bulk)
        return 0;
    for (int row = 0; row < norm.rows; row++)
        for (int i = 0; i < norm.dim; i++) {
            const size_t at = act_at(row, i, norm.dim);
            if (got[at] != want[at])
                return wrong(r, "%s: act of row %d input %d is %04x, rmsnorm's is %04x", what, row, i,
                             got[at], want[at]);
        }
    OK(r, ops->download(&r->be, r->want, r->norm_square, square));
    OK(r, ops->sync(&r->be));
    return expect_floats(r, what, r->square, r->want, (int)(square / sizeof(float)));
}

static int reduce_once(struct rank *r, struct shape s, enum wire wire, enum reduce_path path, int round)
{
    char what[128];
    const int n = s.rows * s.n, world = r->comm.world;
    struct backend *be = &r->be;
    const struct reduce a = reduce_of(r, s, wire, path);
    struct reduce ref = a;
    snprintf(what, sizeof what, "%d rows of %d, %s, path %d, round %d", s.rows, s.n,
             wire == WIRE_F32 ? "f32" : "bf16", (int)path, round);
    fill_parts(r, round, n);
    for (int p = 0; p < world && round % 3 == 0; p++) {
        const uint32_t empty = 0xffffffffu; /* the bits that mean "nothing here yet" */
        if (p == world - 1 || !r->comm.group)
            memcpy(&r->parts[p][n / 2], &empty, sizeof empty);
    }
    for (int i = 0; i < n; i++)
        r->want[i] = number(99, round, i);
    OK(r, be->ops->upload(be, r->y, r->want, (size_t)n * sizeof(float)));
    OK(r, be->ops->upload(be, r->part, r->parts[r->comm.rank], (size_t)n * sizeof(float)));
    OK(r, be->ops->reduce(be, &a));
    ref.y = r->want;
    reduce_sum(&ref, (const float *const *)r->parts, world);
    if (expect_floats(r, what, r->y, r->want, n))
        return 1;
    return expect_norm(r, what, a.norm);
}

/* The act rounded with its scales, by the operations one behind the other; norm_act holds it as it was
 * before. */
static int expect_rounded(struct rank *r, const char *what, const struct reduce *a)
{
    const struct backend_ops *ops = r->be.ops;
    const size_t act = ops->act_bytes(&r->be, a->rows, a->n);
    struct quantise q = reduce_quantise(a);
    q.x = r->norm_act;
    q.scale = r->norm_square;
    OK(r, ops->quantise(&r->be, &q));
    OK(r, ops->download(&r->be, r->host, r->act, act));
    OK(r, ops->download(&r->be, r->want, r->norm_act, act));
    OK(r, ops->sync(&r->be));
    const uint16_t *got = (const uint16_t *)r->host, *want = (const uint16_t *)r->want;
    for (int row = 0; row < a->rows; row++)
        for (int i = 0; i < a->n; i++) {
            const size_t at = act_at(row, i, a->n);
            if (got[at] != want[at])
                return wrong(r, "%s: rounded act of row %d input %d is %04x, expected %04x", what, row, i,
                             got[at], want[at]);
        }
    OK(r, ops->download(&r->be, r->want, r->norm_square, (size_t)a->rows * sizeof(float)));
    OK(r, ops->sync(&r->be));
    return expect_floats(r, what, a->scale, r->want, a->rows);
}

static int reduce_and_round(struct rank *r, struct shape s, int round)
{
    char what[128];
    const int n = s.rows * s.n, squares = s.rows * ((s.n + 15) / 16);
    struct backend *be = &r->be;
    struct reduce a = reduce_of(r, s, WIRE_BF16, REDUCE_BY_SIZE); /* its act is f16 */
    struct rmsnorm norm = a.norm;
    a.scale = r->scale;
    norm.y.act = r->norm_act;
    norm.y.square = r->norm_square;
    snprintf(what, sizeof what, "%d rows of %d, rounded", s.rows, s.n);
    fill_parts(r, round, n);
    for (int i = 0; i < n; i++)
        r->want[i] = number(99, round, i);
    OK(r, be->ops->upload(be, r->y, r->want, (size_t)n * sizeof(float)));
    OK(r, be->ops->upload(be, r->part, r->parts[r->comm.rank], (size_t)n * sizeof(float)));
    OK(r, be->ops->reduce(be, &a));
    struct reduce ref = a;
    ref.y = r->want;
    reduce_sum(&ref, (const float *const *)r->parts, r->comm.world);
    if (expect_floats(r, what, r->y, r->want, n))
        return 1;
    OK(r, be->ops->rmsnorm(be, &norm));
    OK(r, be->ops->download(be, r->want, r->norm_square, (size_t)squares * sizeof(float)));
    OK(r, be->ops->sync(be));
    if (expect_floats(r, what, r->square, r->want, squares))
        return 1;
    return expect_rounded(r, what, &a);
}

/* Within one kernel up to some rows where a rank has its GPU to itself, elsewhere as an operation of its own.
 */
static int round_every_shape(struct rank *r)
{
    static const struct shape shapes[] = {{1, 16},    {1, 64},    {4, 5120}, {3, 576}, {16, 5120}, {24, 2048},
                                          {25, 2048}, {64, 5120}, {5, 8192}, {2, 100}, {3, 8208}};
    for (int turn = 0; turn < 3; turn++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (reduce_and_round(r, shapes[i], 20 * turn + (int)i))
                return 1;
    return 0;
}

START_TEST(a_sum_s_norm_is_rounded_as_an_operation_of_its_own_would)
{
    if (enough(worlds[_i].gpus))
        run_all(worlds[_i].world, worlds[_i].gpus, NUMBERS, round_every_shape, NULL);
}
END_TEST

static int reduce_every_shape(struct rank *r)
{
    static const struct shape shapes[] = {{1, 64},    {3, 64},   {64, 64},  {1, 576},  {2, 576},
                                          {33, 576},  {64, 576}, {1, 5120}, {4, 5120}, {16, 5120},
                                          {64, 5120}, {1, 1},    {3, 49},   {7, 50},   {5, 100},
                                          {64, 577},  {1, 16},   {9, 2048}, {64, 4096}};
    int round = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int wire = WIRE_F32; wire <= WIRE_BF16; wire++)
            for (int path = REDUCE_BY_SIZE; path <= REDUCE_TWO_SHOT; path++)
                if (reduce_once(r, shapes[i], (enum wire)wire, (enum reduce_path)path, round++))
                    return 1;
    return 0;
}

START_TEST(a_sum_has_the_bits_of_the_reference_and_its_norm_those_of_rmsnorm)
{
    if (enough(worlds[_i].gpus))
        run_all(worlds[_i].world, worlds[_i].gpus, NUMBERS, reduce_every_shape, NULL);
}
END_TEST

/* ---- allgather ---- */

static int allgather_once(struct rank *r, int rows, int n)
{
    char what[128];
    struct backend *be = &r->be;
    const int world = r->comm.world, each = (n + world - 1) / world, rank = r->comm.rank;
    const int mine = rank < world - 1 ? each : n - (world - 1) * each;
    const struct allgather a = {.part = r->part, .whole = r->y, .rows = rows, .n = n, .each = each};
    snprintf(what, sizeof what, "allgather of %d rows of %d, %d each", rows, n, each);
    fill_parts(r, n, rows * each);
    memset(r->want, 0, (size_t)rows * (size_t)n * sizeof(float));
    OK(r, be->ops->upload(be, r->y, r->want, (size_t)rows * (size_t)n * sizeof(float)));
    OK(r, be->ops->upload(be, r->part, r->parts[rank], (size_t)rows * (size_t)mine * sizeof(float)));
    OK(r, be->ops->allgather(be, &a));
    for (int i = 0; i < rows * n; i++) {
        const int row = i / n, p = i % n / each, column = i % n % each;
        const int left = n - p * each, theirs = !r->comm.group ? mine : left < each ? left : each;
        r->want[i] = column < theirs ? r->parts[p][row * theirs + column] : 0;
    }
    return expect_floats(r, what, r->y, r->want, rows * n);
}

static int allgather_every_shape(struct rank *r)
{
    static const struct shape shapes[] = {{1, 64}, {3, 97},   {64, 100},  {4, 5000}, {64, 4999},
                                          {1, 8},  {2, 1001}, {1, 65536}, {5, 49152}};
    for (int turn = 0; turn < 3; turn++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const int n = shapes[i].n, world = r->comm.world, each = (n + world - 1) / world;
            if ((world - 1) * each < n && allgather_once(r, shapes[i].rows, n))
                return 1;
        }
    return 0;
}

START_TEST(columns_of_all_ranks_come_together_in_every_rank)
{
    if (enough(worlds[_i].gpus))
        run_all(worlds[_i].world, worlds[_i].gpus, NUMBERS, allgather_every_shape, NULL);
}
END_TEST

/* ---- large ---- */

static int allgather_in_pieces(struct rank *r, int rows, int each)
{
    struct backend *be = &r->be;
    const int world = r->comm.world, rank = r->comm.rank, n = world * each - 3,
              mine = rank < world - 1 ? each : each - 3;
    const size_t bytes = (size_t)rows * (size_t)n * sizeof(float);
    void *whole = NULL;
    float *host = malloc(bytes);
    fill_parts(r, 1, rows * each);
    OK(r, host == NULL);
    OK(r, be->ops->alloc(be, bytes, &whole));
    const struct allgather a = {.part = r->part, .whole = whole, .rows = rows, .n = n, .each = each};
    OK(r, be->ops->upload(be, r->part, r->parts[rank], (size_t)rows * (size_t)mine * sizeof(float)));
    OK(r, be->ops->allgather(be, &a));
    OK(r, be->ops->download(be, host, whole, bytes));
    OK(r, be->ops->sync(be));
    for (int i = 0; i < rows * n; i++) {
        const int row = i / n, p = i % n / each, column = i % n % each,
                  theirs = p < world - 1 ? each : each - 3;
        if (!same(host[i], r->parts[p][row * theirs + column]))
            return wrong(r, "allgather of %d x %d: row %d column %d is %a, expected %a", rows, n, row, i % n,
                         (double)host[i], (double)r->parts[p][row * theirs + column]);
    }
    free(host);
    return 0;
}

/* More than the room of an inbox. */
static int reduce_in_pieces(struct rank *r)
{
    static const struct shape shapes[] = {{256, 5120}, {300, 4099}};
    int round = 0;
    for (int i = 0; i < 2; i++)
        for (int wire = WIRE_F32; wire <= WIRE_BF16; wire++)
            for (int path = REDUCE_ONE_SHOT; path <= REDUCE_TWO_SHOT; path++)
                if (reduce_once(r, shapes[i], (enum wire)wire, (enum reduce_path)path, round++))
                    return 1;
    return allgather_in_pieces(r, 64, 20000);
}

START_TEST(a_large_part_goes_in_pieces)
{
    if (enough(worlds[_i].gpus))
        run_all(worlds[_i].world, worlds[_i].gpus, MANY, reduce_in_pieces, NULL);
}
END_TEST

/* Any order of world terms rounds world - 1 times, each time at most 2^-24 of the terms' sizes together; two
 * orders differ by twice that, and the old y is added once more. */
static int library_within_bound(struct rank *r, struct shape s)
{
    struct backend *be = &r->be;
    const int n = s.rows * s.n, world = r->comm.world;
    const struct reduce a = reduce_of(r, s, WIRE_F32, REDUCE_LIBRARY);
    double worst = 0;
    fill_parts(r, s.rows, n);
    memset(r->want, 0, (size_t)n * sizeof(float));
    OK(r, be->ops->upload(be, r->y, r->want, (size_t)n * sizeof(float)));
    OK(r, be->ops->upload(be, r->part, r->parts[r->comm.rank], (size_t)n * sizeof(float)));
    const int rc = be->ops->reduce(be, &a);
    if (rc == ERR_CONFIG) {
        if (r->comm.rank == 0)
            printf("skipped: %s\n", err_text());
        return 0;
    }
    OK(r, rc);
    OK(r, be->ops->download(be, r->host, r->y, (size_t)n * sizeof(float)));
    OK(r, be->ops->sync(be));
    struct reduce ref = a;
    ref.y = r->want;
    reduce_sum(&ref, (const float *const *)r->parts, world);
    for (int i = 0; i < n; i++) {
        double size = 0;
        for (int p = 0; p < world; p++)
            size += fabs((double)r->parts[p][i]);
        const double share =
            fabs((double)r->host[i] - (double)r->want[i]) / (2 * world * 0x1p-24 * size + 1e-44);
        worst = fmax(worst, share);
        if (!(share <= 1))
            return wrong(r, "NCCL: %d rows of %d: number %d is %a, expected %a: %.2f of the bound", s.rows,
                         s.n, i, (double)r->host[i], (double)r->want[i], share);
    }
    if (r->comm.rank == 0)
        printf("NCCL, %d rows of %d: %.1f %% of the bound\n", s.rows, s.n, 100 * worst);
    return expect_norm(r, "behind NCCL", a.norm);
}

static int library_shapes(struct rank *r)
{
    static const struct shape shapes[] = {{4, 5120}, {64, 5120}, {256, 5120}, {300, 4099}};
    for (int i = 0; i < 4; i++)
        if (library_within_bound(r, shapes[i]))
            return 1;
    return 0;
}

START_TEST(the_library_s_sum_is_ours_but_for_its_order)
{
    if (enough(2))
        run_all(2, 2, MANY, library_shapes, NULL);
}
END_TEST

/* ---- recorded ---- */

enum { REPLAYS = 100 };

/* Three operations, an odd number: turns change place from replay to replay. y += sum twice, then its rows
 * are gathered in pieces into `square`. */
static int enqueue_three(struct rank *r, struct shape s, enum wire wire)
{
    const struct backend_ops *ops = r->be.ops;
    const struct reduce a = reduce_of(r, s, wire, REDUCE_BY_SIZE);
    const struct allgather g = {
        .part = r->part, .whole = r->norm_square, .rows = s.rows, .n = r->comm.world * 8, .each = 8};
    OK(r, ops->reduce(&r->be, &a));
    OK(r, ops->allgather(&r->be, &g));
    OK(r, ops->reduce(&r->be, &a));
    return 0;
}

static int replay(struct rank *r, struct shape s, enum wire wire)
{
    struct backend *be = &r->be;
    const struct pass_key key = {.owner = r, .rows = s.rows, .flags = (unsigned)wire};
    int recorded = 0;
    OK(r, be->ops->pass_begin(be, key, &recorded));
    if (recorded)
        return 0;
    const int rc = enqueue_three(r, s, wire);
    OK(r, be->ops->pass_end(be, rc));
    return rc;
}

/* Now and then a rank is late, on its host and on its device. */
static int dawdle(struct rank *r, int round)
{
    const unsigned h = (unsigned)(r->comm.rank * 7919 + round * 104729) * 2654435761u >> 16;
    if (h % 8 == 0)
        usleep(h / 8 % 500);
    for (unsigned i = 0; h % 4 == 1 && i < h / 4 % 16; i++)
        OK(r, r->be.ops->read(&r->be, r->norm_act, NUMBERS * sizeof(float), r->checksum));
    return 0;
}

static int replay_many(struct rank *r)
{
    const struct shape s = {4, 576};
    const enum wire wire = *(const enum wire *)r->arg;
    const int n = s.rows * s.n, world = r->comm.world;
    struct backend *be = &r->be;
    struct reduce ref = reduce_of(r, s, wire, REDUCE_BY_SIZE);
    float *y = calloc((size_t)n, sizeof *y);
    int rc = y == NULL;
    ref.y = y;
    if (rc == 0)
        rc = be->ops->upload(be, r->y, y, (size_t)n * sizeof *y);
    for (int i = 0; i < REPLAYS && rc == 0; i++) {
        fill_parts(r, i, n);
        rc = dawdle(r, i) || be->ops->upload(be, r->part, r->parts[r->comm.rank], (size_t)n * sizeof *y) ||
             replay(r, s, wire);
        reduce_sum(&ref, (const float *const *)r->parts, world);
        reduce_sum(&ref, (const float *const *)r->parts, world);
        if (rc == 0 && (i % 10 == 9 || i < 4))
            rc = expect_floats(r, "y of a replay", r->y, y, n) || expect_norm(r, "replay", ref.norm);
    }
    be->ops->pass_forget(be, r);
    free(y);
    return rc;
}

START_TEST(a_recorded_pass_reduces_what_is_there_when_it_is_replayed)
{
    static const enum wire wires[] = {WIRE_F32, WIRE_BF16};
    const int w = _i / 2;
    if (enough(worlds[w].gpus))
        run_all(worlds[w].world, worlds[w].gpus, NUMBERS, replay_many, &wires[_i % 2]);
}
END_TEST

/* ---- jitter ---- */

static int hurry_and_dawdle(struct rank *r)
{
    static const struct shape shapes[] = {{4, 5120}, {1, 64}, {64, 576}, {64, 5120}, {2, 576}};
    struct backend *be = &r->be;
    const int world = r->comm.world;
    fill_parts(r, 5, NUMBERS);
    OK(r, be->ops->upload(be, r->part, r->parts[r->comm.rank], NUMBERS * sizeof(float)));
    memset(r->want, 0, NUMBERS * sizeof(float));
    for (int i = 0; i < 200; i++) {
        const struct shape s = shapes[i % 5];
        struct reduce a = reduce_of(r, s, i % 2 ? WIRE_BF16 : WIRE_F32, REDUCE_BY_SIZE);
        if (dawdle(r, i))
            return 1;
        OK(r, be->ops->reduce(be, &a));
        a.y = r->want;
        reduce_sum(&a, (const float *const *)r->parts, world);
    }
    return expect_floats(r, "after 200 reduces", r->y, r->want, NUMBERS);
}

START_TEST(ranks_that_come_early_or_late_get_the_same_bits)
{
    if (enough(worlds[_i].gpus))
        run_all(worlds[_i].world, worlds[_i].gpus, NUMBERS, hurry_and_dawdle, NULL);
}
END_TEST

/* ---- alone ---- */

static int everything(struct rank *r)
{
    return reduce_every_shape(r) || round_every_shape(r) || allgather_every_shape(r);
}

START_TEST(a_rank_alone_sums_and_gathers_its_own_part)
{
    static const struct comm places[] = {{NULL, 0, 8}, {NULL, 7, 8}, {NULL, 1, 2}, {NULL, 2, 4}};
    struct rank r = {.comm = places[_i], .run = everything, .gpus = 1, .numbers = NUMBERS};
    rank_main(&r);
    ck_assert_msg(!r.why[0], "rank %d of %d alone: %s", r.comm.rank, r.comm.world, r.why);
}
END_TEST

/* ---- lost ---- */

enum { SILENT, SAYS_SO, N_LOSSES };

/* The last rank goes. The others have much enqueued, all of which must come to an end. */
static int lose_the_last(struct rank *r)
{
    const struct reduce a = reduce_of(r, (struct shape){4, 5120}, WIRE_F32, REDUCE_BY_SIZE);
    const int last = r->comm.world - 1, says = *(const int *)r->arg == SAYS_SO;
    struct backend *be = &r->be;
    char name[32];
    int idle = 0;
    if (r->comm.rank == last) {
        if (says) {
            usleep(100000);
            ERR_SET(ERR_MEMORY, "no room for the cache");
            comm_fail(&r->comm);
        }
        return 0;
    }
    for (int i = 0; i < 40; i++)
        OK(r, be->ops->reduce(be, &a));
    const int rc = be->ops->sync(be);
    snprintf(name, sizeof name, says ? "no room for the cache" : "for rank %d in", last);
    if (rc != ERR_DEVICE || !strstr(err_text(), name))
        return wrong(r, "sync gave %d, expected %d and '%s': %s", rc, ERR_DEVICE, name, err_text());
    if (be->ops->poll(be, &idle) != ERR_DEVICE)
        return wrong(r, "poll forgot that a rank was lost");
    return 0;
}

static void check_loss(int world, int gpus, int how)
{
    struct rank ranks[COMM_WORLD_MAX] = {
        {.run = lose_the_last, .arg = &how, .gpus = gpus, .numbers = NUMBERS}};
    run_ranks(ranks, world, how == SAYS_SO ? 3600 : 1);
    for (int p = 0; p < world; p++) {
        ck_assert_msg(!ranks[p].why[0], "world %d on %d GPUs, %s: rank %d: %s", world, gpus,
                      how == SAYS_SO ? "says so" : "silent", p, ranks[p].why);
        printf("lost (%s): rank %d of %d ended after %.2f s\n", how == SAYS_SO ? "says so" : "silent", p,
               world, ranks[p].seconds);
        ck_assert_msg(ranks[p].seconds < 10, "rank %d took %.1f s", p, ranks[p].seconds);
    }
}

START_TEST(a_lost_rank_ends_the_others_within_their_patience)
{
    for (int how = 0; how < N_LOSSES && worlds[_i].world > 1; how++)
        if (enough(worlds[_i].gpus))
            check_loss(worlds[_i].world, worlds[_i].gpus, how);
}
END_TEST

int main(void)
{
    setenv("CUDA_MODULE_LOADING", "EAGER", 0); /* a first launch must not wait for a rank that waits */
    if (cuda_suite_skips("test_cuda_comm"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_comm");
    TCase *t = tcase_create("ranks");
    tcase_add_loop_test(t, a_sum_has_the_bits_of_the_reference_and_its_norm_those_of_rmsnorm, 0, WORLDS);
    tcase_add_loop_test(t, a_sum_s_norm_is_rounded_as_an_operation_of_its_own_would, 0, WORLDS);
    tcase_add_loop_test(t, columns_of_all_ranks_come_together_in_every_rank, 0, WORLDS);
    tcase_add_loop_test(t, a_large_part_goes_in_pieces, 0, WORLDS);
    tcase_add_test(t, the_library_s_sum_is_ours_but_for_its_order);
    tcase_add_loop_test(t, a_rank_alone_sums_and_gathers_its_own_part, 0, 4);
    tcase_add_loop_test(t, a_recorded_pass_reduces_what_is_there_when_it_is_replayed, 0, 2 * WORLDS);
    tcase_add_loop_test(t, ranks_that_come_early_or_late_get_the_same_bits, 0, WORLDS);
    tcase_add_loop_test(t, a_lost_rank_ends_the_others_within_their_patience, 0, WORLDS);
    suite_add_tcase(s, t);
    return cuda_suite_run(s);
}
