/* test_readahead: threads that read ahead of a loader change nothing of what it gets: the same bits of every
 * kind of checkpoint with none, one or several of them, alone or as a rank; every weight is on their list.
 * They end when the loader does, wherever it stands. */
#include "engine/err.h"
#include "engine/log.h"
#include "engine/checkpoint.h"
#include "engine/model.h"
#include "engine/readahead.h"
#include "tests/expect.h"
#include "tests/toy_dir.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 5000 };

static const char *const models[] = {"maverick", "scout", "text", "fp8_meta", "fp8_modelopt"};
static struct backend be;

static void setup(void)
{
    log_set_level(LOG_WARN);
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}), 0);
}

static void teardown(void)
{
    backend_close(&be);
}

static void load(struct model *m, const char *dir, int readers, struct shard shard)
{
    const struct model_opts opts = {.readers = readers, .shard = shard};
    EXPECT_MSG(model_load(m, &be, dir, &opts) == 0, "%s", err_text());
}

static void same_matrix(const struct matrix *a, const struct matrix *b)
{
    EXPECT(a->n == b->n && a->k == b->k && a->form == b->form && a->bytes == b->bytes);
    EXPECT(!a->scale == !b->scale);
    const size_t scales = a->scale ? (size_t)a->n * sizeof(float) : 0;
    EXPECT(memcmp(a->data, b->data, a->bytes - scales) == 0);
    if (a->scale)
        EXPECT(memcmp(a->scale, b->scale, scales) == 0);
}

static void same_model(const struct model *a, const struct model *b)
{
    const size_t norm = (size_t)a->cfg.hidden * sizeof(float);
    same_matrix(&a->embed, &b->embed);
    same_matrix(&a->head, &b->head);
    EXPECT(a->fingerprint == b->fingerprint && a->weight_bytes == b->weight_bytes);
    for (int i = 0; i < a->cfg.layers; i++) {
        const struct layer *x = &a->layers[i], *y = &b->layers[i];
        same_matrix(&x->qkv, &y->qkv);
        same_matrix(&x->o, &y->o);
        same_matrix(&x->gate_up, &y->gate_up);
        same_matrix(&x->down, &y->down);
        EXPECT(memcmp(x->attn_norm, y->attn_norm, norm) == 0 && memcmp(x->ffn_norm, y->ffn_norm, norm) == 0);
        for (int e = 0; x->kind & LAYER_MOE && e < a->cfg.experts; e++) {
            same_matrix(&x->expert_gate_up[e], &y->expert_gate_up[e]);
            same_matrix(&x->expert_down[e], &y->expert_down[e]);
        }
    }
}

START_TEST(readers_change_no_bit_of_any_checkpoint)
{
    static const int readers[] = {1, 5, 0};
    static const struct shard shards[] = {{0, 1}, {0, 2}, {1, 2}};
    const int worlds = strcmp(models[_i], "text") == 0 ? 1 : 3; /* one of them has a single key/value head */
    char dir[512];
    snprintf(dir, sizeof dir, "%s/llama4/%s", SPECBED_GOLDEN_DIR, models[_i]);
    for (int s = 0; s < worlds; s++) {
        struct model alone, m;
        load(&alone, dir, -1, shards[s]);
        ck_assert(alone.load.readers == 0 && alone.load.read_seconds == 0 && alone.load.bytes > 0);
        for (int i = 0; i < 3; i++) {
            load(&m, dir, readers[i], shards[s]);
            same_model(&m, &alone);
            ck_assert_int_eq(m.load.readers, readers[i] ? readers[i] : 1);
            ck_assert_uint_eq(m.load.bytes, alone.load.bytes);
            ck_assert(m.load.seconds > 0 && m.load.read_seconds >= 0);
            model_deinit(&m);
        }
        model_deinit(&alone);
    }
}
END_TEST

START_TEST(every_weight_of_a_checkpoint_is_read_once)
{
    struct toy_dir dir;
    struct checkpoint c;
    struct model m;
    size_t bytes = 0;
    ck_assert_int_eq(toy_dir_make(&dir, SPECBED_GOLDEN_DIR), 0);
    ck_assert_msg(checkpoint_open(&c, dir.model) == 0, "%s", err_text());
    for (int i = 0; i < c.n_files; i++)
        for (int j = 0; j < c.files[i].n; j++)
            bytes += c.files[i].tensors[j].n_dims == 2 ? c.files[i].tensors[j].bytes : 0;
    checkpoint_close(&c);
    load(&m, dir.model, 0, (struct shard){0, 1});
    ck_assert_uint_eq(m.load.bytes, bytes);
    model_deinit(&m);
    toy_dir_remove(&dir);
}
END_TEST

START_TEST(threads_end_wherever_the_loader_stands)
{
    static const int upto[] = {0, 1, 40, 100, 120};
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *map = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(map, MAP_FAILED);
    for (int threads = 0; threads < 20; threads += 1 + threads)
        for (int i = 0; i < 5; i++) {
            struct readahead r = {.n = 0};
            double seconds = -1;
            for (int k = 0; k < 100; k++) /* none is aligned; some are empty */
                ck_assert_int_eq(
                    readahead_note(&r, map + 1 + 7777 * (size_t)k, k % 9 ? 100000u * (size_t)k : 0), 0);
            ck_assert_int_eq(readahead_start(&r, threads), 0);
            for (int k = 0; k < upto[i]; k++)
                readahead_next(&r);
            readahead_stop(&r, &seconds);
            ck_assert(threads ? seconds >= 0 : seconds == 0);
            readahead_next(&r); /* nobody listens */
            readahead_deinit(&r);
        }
    munmap(map, PAGES * page);
}
END_TEST

START_TEST(a_wrong_checkpoint_is_refused_before_it_is_read)
{
    struct toy_dir dir;
    struct model m;
    char path[128];
    ck_assert_int_eq(toy_dir_make(&dir, SPECBED_GOLDEN_DIR), 0);
    snprintf(path, sizeof path, "%s/config.json", dir.model);
    FILE *f = fopen(path, "r+");
    char text[4096] = "";
    ck_assert_ptr_nonnull(f);
    const size_t n = fread(text, 1, sizeof text - 1, f);
    char *at = strstr(text, "\"num_hidden_layers\":2");
    ck_assert_ptr_nonnull(at);
    at[strlen("\"num_hidden_layers\":")] = '3';
    rewind(f);
    ck_assert_uint_eq(fwrite(text, 1, n, f), n);
    fclose(f);
    const size_t before = be.allocs;
    ck_assert_int_eq(model_load(&m, &be, dir.model, NULL), ERR_FORMAT);
    ck_assert_ptr_nonnull(strstr(err_text(), "model.layers.2."));
    ck_assert_uint_eq(be.allocs, before);
    toy_dir_remove(&dir);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("readahead");
    TCase *c = tcase_create("readahead");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_loop_test(c, readers_change_no_bit_of_any_checkpoint, 0, sizeof models / sizeof *models);
    tcase_add_test(c, every_weight_of_a_checkpoint_is_read_once);
    tcase_add_test(c, threads_end_wherever_the_loader_stands);
    tcase_add_test(c, a_wrong_checkpoint_is_refused_before_it_is_read);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
