/* expect: ck_assert for inner loops. Check notes every assertion that passes in a file, which in a loop of 100000 is most of a
 * test's time; this one is silent until it fails. */
#ifndef TESTS_EXPECT_H
#define TESTS_EXPECT_H
#include <check.h>

#define EXPECT(cond)                                                                                         \
    do {                                                                                                     \
        if (!(cond))                                                                                         \
            ck_abort_msg("expected %s", #cond);                                                              \
    } while (0)
#define EXPECT_MSG(cond, ...)                                                                                \
    do {                                                                                                     \
        if (!(cond))                                                                                         \
            ck_abort_msg(__VA_ARGS__);                                                                       \
    } while (0)
#endif
