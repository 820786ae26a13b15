/* nccl: the few functions of the library that we call are declared here, as its manual states them, so that
 * building needs no header of it. */
#include "engine/nccl.h"
#include "engine/err.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ID_BYTES = 128, FLOAT32 = 7, SUM = 0, WHY = 512 };

static const char *const places[] = {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2",
                                     "/usr/local/cuda/lib/libnccl.so.2"};

struct unique_id {
    char bytes[ID_BYTES];
};

/* What is called of it. Results are 0 or an error. */
struct library {
    int (*version)(int *out);
    int (*unique_id)(struct unique_id *out);
    int (*init)(void **comm, int world, struct unique_id id, int rank);
    int (*destroy)(void *comm);
    int (*abort)(void *comm);
    int (*all_reduce)(const void *from, void *to, size_t n, int type, int op, void *comm, void *stream);
    const char *(*text)(int error);
};

struct nccl {
    struct library lib;
    void *so;   /* owned; its code stays loaded */
    void *comm; /* owned; NULL once aborted */
    int version;
};

static int refused(const struct nccl *n, int error, const char *what)
{
    FAIL(ERR_DEVICE, "NCCL %d: %s was refused: %s; NCCL_DEBUG=WARN in the environment makes it say more",
         n->version, what, n->lib.text(error));
}

/* dlsym returns functions as objects: POSIX makes the two the same size, C does not. */
static int find(const struct nccl *n, const char *name, void *to)
{
    void *symbol = dlsym(n->so, name);
    if (!symbol)
        FAIL(ERR_DEVICE,
             "NCCL: the library found as libnccl.so.2 has no function %s: expected version 2.18 or later",
             name);
    memcpy(to, &symbol, sizeof symbol);
    return 0;
}

/* The first place that has it; what is wrong with the first says most. */
static int open_library(struct nccl *n)
{
    char first[WHY / 2] = "";
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        n->so = dlopen(places[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (n->so)
            return 0;
        const char *error = dlerror();
        if (i == 0)
            snprintf(first, sizeof first, "%s", error ? error : "no reason given");
    }
    FAIL(ERR_DEVICE,
         "NCCL is not installed (package libnccl2, or pip install nvidia-nccl-cu13 and its folder in "
         "LD_LIBRARY_PATH): "
         "%s",
         first);
}

static int load(struct nccl *n)
{
    struct library *l = &n->lib;
    const struct {
        const char *name;
        void *to;
    } all[] = {{"ncclGetVersion", &l->version},   {"ncclGetUniqueId", &l->unique_id},
               {"ncclCommInitRank", &l->init},    {"ncclCommDestroy", &l->destroy},
               {"ncclCommAbort", &l->abort},      {"ncclAllReduce", &l->all_reduce},
               {"ncclGetErrorString", &l->text}};
    TRY(open_library(n));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        TRY(find(n, all[i].name, all[i].to));
    if (l->version(&n->version))
        n->version = 0;
    return 0;
}

/* Whether every rank has it: all take the same way. */
static int agree(const struct comm *c, int mine, int *all)
{
    int have[COMM_WORLD_MAX];
    TRY(comm_exchange(c, &mine, sizeof mine, have));
    *all = 1;
    for (int p = 0; p < c->world; p++)
        *all &= have[p];
    return 0;
}

/* Rank 0's id in every rank. */
static int share_id(struct nccl *n, const struct comm *c, struct unique_id *out)
{
    struct unique_id mine = {{0}}, all[COMM_WORLD_MAX];
    const int error = c->rank == 0 ? n->lib.unique_id(&mine) : 0;
    if (error)
        return refused(n, error, "an id for the group");
    TRY(comm_exchange(c, &mine, sizeof mine, all));
    *out = all[0];
    return 0;
}

static int start(struct nccl *n, const struct comm *c)
{
    struct unique_id id;
    TRY(share_id(n, c, &id));
    const int error = n->lib.init(&n->comm, c->world, id, c->rank);
    if (error) {
        n->comm = NULL;
        return refused(n, error, "joining the group");
    }
    return comm_barrier(c);
}

int nccl_open(struct nccl **out, const struct comm *c)
{
    char why[WHY] = "NCCL: another rank does not have it";
    int everywhere = 0;
    *out = NULL;
    if (c->rank == 0)
        setenv("NCCL_NVLS_ENABLE", "0", 0);
    TRY(comm_barrier(c)); /* until then nobody else reads the environment */
    struct nccl *n = calloc(1, sizeof *n);
    const int missing = n ? load(n) : ERR_SET(ERR_MEMORY, "NCCL: out of memory");
    if (missing)
        strncpy(why, err_text(), WHY - 1);
    int rc = agree(c, !missing, &everywhere);
    if (rc == 0 && everywhere)
        rc = start(n, c);
    if (rc == 0 && everywhere) {
        *out = n;
        return 0;
    }
    nccl_close(n);
    if (rc == 0)
        ERR_SET(ERR_DEVICE, "%s", why);
    return rc;
}

void nccl_close(struct nccl *n)
{
    if (!n)
        return;
    if (n->comm)
        n->lib.destroy(n->comm);
    if (n->so)
        dlclose(n->so);
    free(n);
}

void nccl_abort(struct nccl *n)
{
    if (n && n->comm)
        n->lib.abort(n->comm);
    if (n)
        n->comm = NULL;
}

int nccl_all_reduce(struct nccl *n, const float *from, float *to, size_t numbers, void *stream)
{
    if (!n->comm)
        FAIL(ERR_DEVICE, "NCCL: the group was given up");
    const int error = n->lib.all_reduce(from, to, numbers, FLOAT32, SUM, n->comm, stream);
    return error ? refused(n, error, "an all-reduce") : 0;
}
