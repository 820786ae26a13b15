/* test_safetensors: files made in memory, one failure of the format at a time; each must be named in the
 * sentence. */
#include "engine/safetensors.h"
#include "engine/err.h"
#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A file of a header and n_data bytes 0, 1, 2, ...; the caller frees it. */
static unsigned char *make_file(const char *header, size_t n_data, size_t *n)
{
    size_t length = strlen(header);
    unsigned char *bytes = malloc(8 + length + n_data);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < n_data; i++)
        bytes[8 + length + i] = (unsigned char)i;
    *n = 8 + length + n_data;
    return bytes;
}

static void expect_error(int rc, int code, const char *sentence)
{
    ck_assert_int_eq(rc, code);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
}

#define TWO_TENSORS                                                                                          \
    "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]" \
    "},"                                                                                                     \
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}}  "

START_TEST(tensors_are_found_by_name_with_shape_and_data)
{
    size_t n;
    unsigned char *bytes = make_file(TWO_TENSORS, 28, &n);
    struct safetensors st = {0};
    ck_assert_int_eq(safetensors_parse(&st, bytes, n, "two"), 0);
    ck_assert_int_eq(st.n, 2);
    ck_assert_str_eq(st.path, "two");
    ck_assert_str_eq(st.tensors[0].name, "a");
    const struct tensor *b = safetensors_find(&st, "b");
    ck_assert_ptr_nonnull(b);
    ck_assert_str_eq(b->dtype, "F32");
    ck_assert_int_eq(b->n_dims, 2);
    ck_assert_uint_eq(b->shape[0], 2);
    ck_assert_uint_eq(b->shape[1], 3);
    ck_assert_uint_eq(b->bytes, 24);
    ck_assert_uint_eq(*(const unsigned char *)b->data, 4);
    ck_assert_ptr_null(safetensors_find(&st, "c"));
    safetensors_close(&st);
    safetensors_close(&st);
    free(bytes);
}
END_TEST

START_TEST(scalars_empty_tensors_and_files_without_tensors_are_fine)
{
    static const struct {
        const char *header;
        size_t n_data;
        int n;
    } good[] = {{"{}", 0, 0},
                {"{\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]}}", 8, 1},
                {"{\"e\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[0,0]}}", 0, 1},
                {"{\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]},"
                 "\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                 "\"y\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[2,3]}}",
                 3, 3},
                {"{\"f\":{\"dtype\":\"F4\",\"shape\":[6],\"data_offsets\":[0,3]}}", 3, 1}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        size_t n;
        unsigned char *bytes = make_file(good[i].header, good[i].n_data, &n);
        struct safetensors st = {0};
        ck_assert_msg(safetensors_parse(&st, bytes, n, "good") == 0, "%s", err_text());
        ck_assert_int_eq(st.n, good[i].n);
        safetensors_close(&st);
        free(bytes);
    }
}
END_TEST

#define ONE(dtype, shape, offsets)                                                                           \
    "{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
    const char *header;
    size_t n_data;
    const char *sentence;
} bad[] = {
    {"[1]", 0, "header: expected an object, found an array"},
    {"{\"t\":", 0, "expected JSON, found"},
    {"{\"t\":{},\"t\":{}}", 0, "duplicate"},
    {"{\"t\":3}", 0, "tensor 't': expected an object, found an integer"},
    {"{\"__metadata__\":[]}", 0, "'__metadata__': expected an object of strings, found an array"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "'__metadata__': expected strings, found an integer for 'a'"},
    {ONE("7", "[4]", "[0,4]"), 4, "'dtype': expected a string, found an integer"},
    {ONE("\"F31\"", "[4]", "[0,4]"), 4, "'dtype': expected one such as BF16, F16 or F32, found 'F31'"},
    {ONE("\"\"", "[4]", "[0,4]"), 4, "'dtype': expected one such as BF16, F16 or F32, found ''"},
    {ONE("\"U8\"", "4", "[0,4]"), 4, "'shape': expected an array, found an integer"},
    {ONE("\"U8\"", "[1,1,1,1,1,1,1,1,4]", "[0,4]"), 4, "'shape': expected at most 8 dimensions, found 9"},
    {ONE("\"U8\"", "[-4]", "[0,4]"), 4, "'shape': expected whole numbers >= 0, found an integer at index 0"},
    {ONE("\"U8\"", "[2,2.0]", "[0,4]"), 4,
     "'shape': expected whole numbers >= 0, found a real number at index 1"},
    {ONE("\"U8\"", "[4294967296,4294967296,4]", "[0,4]"), 4, "'shape': expected a size below 2^64"},
    {ONE("\"F64\"", "[4611686018427387904]", "[0,0]"), 0, "expected whole bytes below 2^61"},
    {ONE("\"F4\"", "[3]", "[0,1]"), 1, "expected whole bytes below 2^61, found 3 elements of 4 bits"},
    {ONE("\"U8\"", "[4]", "[0]"), 4, "'data_offsets': expected two whole numbers"},
    {ONE("\"U8\"", "[4]", "[0,-4]"), 4, "'data_offsets': expected two whole numbers"},
    {ONE("\"U8\"", "[4]", "[4,0]"), 4, "'data_offsets': expected begin <= end <= 4"},
    {ONE("\"U8\"", "[4]", "[0,5]"), 4, "found [0, 5]: the file is damaged or cut short"},
    {ONE("\"U8\"", "[4]", "[9223372036854775806,9223372036854775807]"), 4, "expected begin <= end <= 4"},
    {ONE("\"U8\"", "[4]", "[0,9223372036854775808]"), 4, "expected JSON, found"},
    {ONE("\"F32\"", "[2]", "[0,4]"), 4, "expected 8 bytes by its shape and F32, found 4 by its offsets"},
    {ONE("\"U8\"", "[3]", "[1,4]"), 4,
     "expected its data at offset 0, where 'the header' ends, found 1: there is a hole"},
    {ONE("\"U8\"", "[3]", "[0,3]"), 4, "expected 3 bytes of data, which its tensors cover, found 4"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
     4, "tensor 'b': expected its data at offset 3, where 'a' ends, found 2: the two overlap"},
};

START_TEST(a_bad_header_is_named_with_what_was_expected)
{
    size_t n;
    unsigned char *bytes = make_file(bad[_i].header, bad[_i].n_data, &n);
    struct safetensors st = {.n = 77};
    expect_error(safetensors_parse(&st, bytes, n, "bad.safetensors"), ERR_FORMAT, bad[_i].sentence);
    expect_error(ERR_FORMAT, ERR_FORMAT, "bad.safetensors: ");
    ck_assert_int_eq(st.n, 77); /* written only on success */
    free(bytes);
}
END_TEST

START_TEST(a_file_cut_anywhere_is_an_error)
{
    size_t n;
    unsigned char *bytes = make_file(TWO_TENSORS, 28, &n);
    for (size_t cut = 0; cut < n; cut++) {
        unsigned char *copy =
            malloc(cut + 1); /* exact size, so that a sanitizer sees any byte read past it */
        struct safetensors st = {0};
        memcpy(copy, bytes, cut);
        copy = realloc(copy, cut ? cut : 1);
        ck_assert_int_eq(safetensors_parse(&st, copy, cut, "cut"), ERR_FORMAT);
        free(copy);
    }
    free(bytes);
}
END_TEST

START_TEST(an_absurd_header_length_is_refused_before_it_is_used)
{
    unsigned char bytes[16] = {0};
    struct safetensors st = {0};
    expect_error(safetensors_parse(&st, bytes, 7, "x"), ERR_FORMAT, "at least 8 bytes, found 7");
    memset(bytes, 0xff, 8);
    expect_error(safetensors_parse(&st, bytes, 16, "x"), ERR_FORMAT,
                 "expected a header of at most 100000000 bytes, found 18446744073709551615");
    memset(bytes, 0, 8);
    bytes[0] = 9;
    expect_error(safetensors_parse(&st, bytes, 16, "x"), ERR_FORMAT, "expected a header of 9 bytes, found 8");
}
END_TEST

static void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

START_TEST(a_file_is_mapped_and_released_pages_read_the_same_again)
{
    char header[256], path[] = "/tmp/test_safetensors_XXXXXX";
    const size_t data = 5 * 4096 + 123;
    size_t n;
    snprintf(header, sizeof header, "{\"t\":{\"dtype\":\"U8\",\"shape\":[%zu],\"data_offsets\":[0,%zu]}}",
             data, data);
    unsigned char *bytes = make_file(header, data, &n);
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
    write_file(path, bytes, n);
    struct safetensors st = {0};
    ck_assert_int_eq(safetensors_open(&st, path), 0);
    ck_assert_uint_eq(st.map_bytes, n);
    ck_assert_ptr_nonnull(st.map);
    const struct tensor *t = safetensors_find(&st, "t");
    ck_assert_mem_eq(t->data, bytes + n - data, data);
    safetensors_release(&st, t->data, t->bytes);
    ck_assert_mem_eq(t->data, bytes + n - data, data);
    safetensors_close(&st);
    unlink(path);
    free(bytes);
}
END_TEST

START_TEST(what_is_not_a_file_is_an_io_error)
{
    char path[] = "/tmp/test_safetensors_XXXXXX";
    struct safetensors st = {0};
    expect_error(safetensors_open(&st, "/nonexistent/x.safetensors"), ERR_IO,
                 "/nonexistent/x.safetensors: cannot open: No such file");
    expect_error(safetensors_open(&st, "/tmp"), ERR_IO, "/tmp: expected a regular file");
    close(mkstemp(path));
    expect_error(safetensors_open(&st, path), ERR_FORMAT, "at least 8 bytes, found 0");
    unlink(path);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("safetensors");
    TCase *good = tcase_create("reads"), *wrong = tcase_create("refuses"), *files = tcase_create("files");
    tcase_add_test(good, tensors_are_found_by_name_with_shape_and_data);
    tcase_add_test(good, scalars_empty_tensors_and_files_without_tensors_are_fine);
    tcase_add_loop_test(wrong, a_bad_header_is_named_with_what_was_expected, 0, sizeof bad / sizeof *bad);
    tcase_add_test(wrong, a_file_cut_anywhere_is_an_error);
    tcase_add_test(wrong, an_absurd_header_length_is_refused_before_it_is_used);
    tcase_add_test(files, a_file_is_mapped_and_released_pages_read_the_same_again);
    tcase_add_test(files, what_is_not_a_file_is_an_io_error);
    suite_add_tcase(s, good);
    suite_add_tcase(s, wrong);
    suite_add_tcase(s, files);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
