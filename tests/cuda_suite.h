/* cuda_suite: how a suite that needs a GPU begins and ends. */
#ifndef TESTS_CUDA_SUITE_H
#define TESTS_CUDA_SUITE_H
#include <check.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

enum { CUDA_SUITE_SKIPPED = 77 }; /* what CTest takes for it */

/* 1, and a sentence, where there is no GPU. */
static inline int cuda_suite_skips(const char *name)
{
    int devices = 0;
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); /* as main.c does, before the first call of the runtime */
    const cudaError_t e = cudaGetDeviceCount(&devices);
    if (e == cudaSuccess && devices > 0)
        return 0;
    printf("%s: skipped: no CUDA device (%s)\n", name, cudaGetErrorString(e));
    return 1;
}

/* Fails the test with the runtime's words for it. */
static inline void cuda_ok(int error, const char *what)
{
    if (error)
        ck_abort_msg("%s: %s", what, cudaGetErrorString((cudaError_t)error));
}

/* In this process, so that one context serves all tests. 1: some failed. Frees s. */
static inline int cuda_suite_run(Suite *s)
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* a suite that hangs has said how far it came */
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_NOFORK);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
#endif
