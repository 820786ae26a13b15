/* test_checkpoint: directories written by the test, whole and broken; what is wrong must be named with its
 * fix. */
#include "engine/checkpoint.h"
#include "engine/err.h"
#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SINGLE "model.safetensors"
#define INDEX  "model.safetensors.index.json"

static char dir[64];

static void make_dir(void)
{
    snprintf(dir, sizeof dir, "/tmp/test_checkpoint_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void remove_dir(void)
{
    struct dirent *e;
    DIR *d = opendir(dir);
    while ((e = readdir(d)))
        unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(dir);
}

static void write_file(const char *name, const void *bytes, size_t n)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static void write_text(const char *name, const char *text)
{
    write_file(name, text, strlen(text));
}

/* One tensor as the test wants it in a file; its bytes are all `fill`. */
struct entry {
    const char *name, *dtype, *shape;
    size_t bytes;
    int fill;
};

static void write_tensors(const char *file, const struct entry *e, int n)
{
    char header[2048] = "{";
    unsigned char bytes[4096];
    size_t at = 1, begin = 0;
    for (int i = 0; i < n; begin += e[i++].bytes)
        at += (size_t)snprintf(header + at, sizeof header - at,
                               "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                               i ? "," : "", e[i].name, e[i].dtype, e[i].shape, begin, begin + e[i].bytes);
    header[at++] = '}';
    memset(bytes, 0, 8);
    bytes[0] = (unsigned char)at;
    bytes[1] = (unsigned char)(at >> 8);
    memcpy(bytes + 8, header, at);
    at += 8;
    for (int i = 0; i < n; at += e[i++].bytes)
        memset(bytes + at, e[i].fill, e[i].bytes);
    write_file(file, bytes, at);
}

static const struct entry a = {"a", "BF16", "[2,3]", 12, 1}, b = {"b", "F32", "[4]", 16, 2},
                          c8 = {"c", "F8_E4M3", "[2]", 2, 3};

static void expect_error(int rc, int code, const char *sentence)
{
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
}

START_TEST(a_single_file_lends_its_tensors)
{
    struct checkpoint c = {0};
    const struct tensor *t = NULL;
    write_tensors(SINGLE, (struct entry[]){a, b}, 2);
    ck_assert_msg(checkpoint_open(&c, dir) == 0, "%s", err_text());
    ck_assert_int_eq(checkpoint_has(&c, "a"), 1);
    ck_assert_int_eq(checkpoint_has(&c, "z"), 0);
    ck_assert_int_eq(checkpoint_take(&c, "b", 4, 0, &t), 0);
    ck_assert_uint_eq(*(const unsigned char *)t->data, 2);
    ck_assert_int_eq(checkpoint_take(&c, "a", 2, 3, &t), 0);
    ck_assert_uint_eq(*(const unsigned char *)t->data, 1);
    checkpoint_release(&c, t->data, t->bytes);
    ck_assert_int_eq(checkpoint_unused(&c, 0), 0);
    checkpoint_close(&c);
    checkpoint_close(&c);
}
END_TEST

START_TEST(shards_are_seen_as_one)
{
    struct checkpoint c = {0};
    const struct tensor *t = NULL;
    write_tensors("s1.safetensors", &b, 1);
    write_tensors("s2.safetensors", &a, 1);
    write_text(INDEX, "{\"metadata\":{},\"weight_map\":{\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\"}}");
    ck_assert_msg(checkpoint_open(&c, dir) == 0, "%s", err_text());
    ck_assert_int_eq(c.n_files, 2);
    ck_assert_int_eq(checkpoint_take(&c, "a", 2, 3, &t), 0);
    expect_error(checkpoint_unused(&c, 0), ERR_FORMAT, "found 1 more, the first 'b'");
    ck_assert_int_eq(checkpoint_take(&c, "b", 4, 0, &t), 0);
    ck_assert_int_eq(checkpoint_unused(&c, 0), 0);
    checkpoint_close(&c);
}
END_TEST

START_TEST(a_tensor_of_another_shape_or_type_is_refused)
{
    struct checkpoint c = {0};
    const struct tensor *t = NULL;
    write_tensors(SINGLE, (struct entry[]){a, b, c8}, 3);
    ck_assert_int_eq(checkpoint_open(&c, dir), 0);
    expect_error(checkpoint_take(&c, "a", 3, 2, &t), ERR_FORMAT,
                 "tensor 'a': expected [3, 2], found BF16 [2, 3]");
    expect_error(checkpoint_take(&c, "a", 6, 0, &t), ERR_FORMAT,
                 "tensor 'a': expected [6], found BF16 [2, 3]");
    expect_error(checkpoint_take(&c, "b", 4, 1, &t), ERR_FORMAT,
                 "tensor 'b': expected [4, 1], found F32 [4]");
    expect_error(checkpoint_take(&c, "z", 4, 1, &t), ERR_FORMAT,
                 "tensor 'z': expected [4, 1], found no such tensor");
    expect_error(checkpoint_take(&c, "c", 2, 0, &t), ERR_FORMAT,
                 "tensor 'c': expected BF16, F16 or F32 [2], found F8_E4M3 [2]");
    ck_assert_ptr_null(t);
    checkpoint_close(&c);
}
END_TEST

START_TEST(only_rotary_tables_and_a_tied_head_may_stay_unused)
{
    struct checkpoint c = {0};
    struct entry rotary = b, head = a;
    rotary.name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    head.name = "lm_head.weight";
    write_tensors(SINGLE, (struct entry[]){rotary, head}, 2);
    ck_assert_int_eq(checkpoint_open(&c, dir), 0);
    ck_assert_int_eq(checkpoint_unused(&c, 1), 0);
    expect_error(checkpoint_unused(&c, 0), ERR_FORMAT, "found 1 more, the first 'lm_head.weight'");
    checkpoint_close(&c);
}
END_TEST

START_TEST(what_sees_may_stay_beside_a_text_model_that_says_so)
{
    struct checkpoint c = {0};
    struct entry tower = b, projector = a;
    tower.name = "vision_model.layernorm_pre.bias";
    projector.name = "multi_modal_projector.linear_1.weight";
    write_tensors(SINGLE, (struct entry[]){projector, tower}, 2);
    ck_assert_int_eq(checkpoint_open(&c, dir), 0);
    ck_assert_int_eq(checkpoint_unused(&c, CHECKPOINT_VISION), 0);
    expect_error(checkpoint_unused(&c, CHECKPOINT_TIED), ERR_FORMAT, "found 2 more");
    checkpoint_close(&c);
}
END_TEST

static const struct {
    const char *index, *sentence;
    int code;
} bad_index[] = {
    {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s3.safetensors\"}}",
     "opening its shard 's3.safetensors'", ERR_IO},
    {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\"}}",
     "expected tensor 'b' in 's1.safetensors', which does not hold it: fetch that file again", ERR_FORMAT},
    {"{\"weight_map\":{\"b\":\"s2.safetensors\"}}",
     "'s2.safetensors' holds tensor 'a', which the index does not list", ERR_FORMAT},
    {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}}",
     "expected tensor 'a' in one shard, found it in 's1.safetensors' and in 's2.safetensors'", ERR_FORMAT},
    {"{\"weight_map\":{\"a\":\"../s1.safetensors\"}}", "expected a file of the same directory for 'a'",
     ERR_FORMAT},
    {"{\"weight_map\":{\"a\":\"\"}}", "expected a file of the same directory for 'a'", ERR_FORMAT},
    {"{\"weight_map\":{\"a\":5}}", "'weight_map': expected a file name for 'a', found an integer",
     ERR_FORMAT},
    {"{\"weight_map\":{}}", "'weight_map': expected at least one tensor", ERR_FORMAT},
    {"{\"weight_map\":[]}", "'weight_map': expected an object, found an array", ERR_FORMAT},
    {"[]", "'weight_map': expected an object, found nothing", ERR_FORMAT},
    {"{", "expected JSON", ERR_FORMAT},
};

START_TEST(an_index_that_differs_from_its_shards_is_refused)
{
    struct checkpoint c = {.n_files = 0};
    write_tensors("s1.safetensors", &a, 1);
    write_tensors("s2.safetensors", (struct entry[]){a, b}, 2);
    write_text(INDEX, bad_index[_i].index);
    expect_error(checkpoint_open(&c, dir), bad_index[_i].code, bad_index[_i].sentence);
    ck_assert_ptr_null(c.dir);
}
END_TEST

START_TEST(a_directory_without_weights_is_told_what_to_do)
{
    struct checkpoint c = {0};
    expect_error(checkpoint_open(&c, dir), ERR_IO,
                 "expected model.safetensors or model.safetensors.index.json, found neither");
    write_text("pytorch_model.bin", "x");
    expect_error(checkpoint_open(&c, dir), ERR_FORMAT,
                 "found only pytorch_model.bin: convert it with transformers");
    write_text(SINGLE, "x");
    expect_error(checkpoint_open(&c, dir), ERR_FORMAT, "model.safetensors: expected a safetensors file");
}
END_TEST

static uint64_t fingerprint(void)
{
    struct checkpoint c = {0};
    ck_assert_int_eq(checkpoint_open(&c, dir), 0);
    uint64_t h = checkpoint_fingerprint(&c);
    checkpoint_close(&c);
    return h;
}

START_TEST(the_fingerprint_is_of_the_weights_and_not_of_the_files)
{
    struct entry changed = b, renamed = a, reshaped = a, retyped = a;
    write_tensors(SINGLE, (struct entry[]){a, b}, 2);
    const uint64_t h = fingerprint();
    write_tensors(SINGLE, (struct entry[]){b, a}, 2);
    ck_assert_uint_eq(fingerprint(), h);
    changed.fill = 9;
    write_tensors(SINGLE, (struct entry[]){a, changed}, 2);
    ck_assert_uint_ne(fingerprint(), h);
    renamed.name = "a2";
    write_tensors(SINGLE, (struct entry[]){renamed, b}, 2);
    ck_assert_uint_ne(fingerprint(), h);
    reshaped.shape = "[3,2]";
    write_tensors(SINGLE, (struct entry[]){reshaped, b}, 2);
    ck_assert_uint_ne(fingerprint(), h);
    retyped.dtype = "F16";
    write_tensors(SINGLE, (struct entry[]){retyped, b}, 2);
    ck_assert_uint_ne(fingerprint(), h);
    remove_dir();
    make_dir();
    write_tensors("s1.safetensors", &a, 1);
    write_tensors("s2.safetensors", &b, 1);
    write_text(INDEX, "{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}}");
    ck_assert_uint_eq(fingerprint(), h);
}
END_TEST

START_TEST(the_fingerprint_samples_both_ends_of_a_large_tensor)
{
    enum { BYTES = 1000 };
    struct entry one = {"t", "U8", "[1000]", BYTES, 5};
    char path[256], byte = 6;
    write_tensors(SINGLE, &one, 1);
    const uint64_t h = fingerprint();
    snprintf(path, sizeof path, "%s/%s", dir, SINGLE);
    for (int end = 0; end < 2; end++) {
        write_tensors(SINGLE, &one, 1);
        FILE *f = fopen(path, "r+b");
        fseek(f, end ? -1 : -BYTES, SEEK_END);
        fwrite(&byte, 1, 1, f);
        fclose(f);
        ck_assert_uint_ne(fingerprint(), h);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("checkpoint");
    TCase *reads = tcase_create("reads"), *refuses = tcase_create("refuses"),
          *prints = tcase_create("fingerprint");
    tcase_add_checked_fixture(reads, make_dir, remove_dir);
    tcase_add_checked_fixture(refuses, make_dir, remove_dir);
    tcase_add_checked_fixture(prints, make_dir, remove_dir);
    tcase_add_test(reads, a_single_file_lends_its_tensors);
    tcase_add_test(reads, shards_are_seen_as_one);
    tcase_add_test(reads, only_rotary_tables_and_a_tied_head_may_stay_unused);
    tcase_add_test(reads, what_sees_may_stay_beside_a_text_model_that_says_so);
    tcase_add_test(refuses, a_tensor_of_another_shape_or_type_is_refused);
    tcase_add_loop_test(refuses, an_index_that_differs_from_its_shards_is_refused, 0,
                        sizeof bad_index / sizeof *bad_index);
    tcase_add_test(refuses, a_directory_without_weights_is_told_what_to_do);
    tcase_add_test(prints, the_fingerprint_is_of_the_weights_and_not_of_the_files);
    tcase_add_test(prints, the_fingerprint_samples_both_ends_of_a_large_tensor);
    suite_add_tcase(s, reads);
    suite_add_tcase(s, refuses);
    suite_add_tcase(s, prints);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
