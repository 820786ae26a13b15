/* backend_cuda_graph: passes that come again are recorded while their operations are enqueued for the first
 * time; and the stamps that time them. */
#include "engine/backend_cuda.h"
#include "engine/err.h"

static int same_pass(struct pass_key a, struct pass_key b)
{
    return a.owner == b.owner && a.rows == b.rows && a.reach == b.reach && a.flags == b.flags;
}

/* A pass that is new is recorded while its operations are enqueued, then launched like any later one. When
 * the table is full, and for whoever wants to see single operations, they run as they come. */
int cuda_pass_begin(struct backend *be, struct pass_key key, int *recorded)
{
    struct cuda *c = cuda_of(be);
    *recorded = 0;
    for (int i = 0; i < c->n_graphs; i++)
        if (same_pass(c->graphs[i].key, key)) {
            TRY(cuda_check(be, cudaGraphLaunch(c->graphs[i].exec, c->stream), "launching a recorded pass"));
            c->last = (struct cuda_launch){"a recorded pass", key.rows, 0, 0};
            *recorded = 1;
            return 0;
        }
    if (c->eager || c->n_graphs == CUDA_GRAPHS)
        return 0;
    TRY(cuda_check(be, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal),
                   "recording a pass"));
    c->recording = key;
    c->launches_before = be->launches;
    return 0;
}

int cuda_pass_end(struct backend *be, int error)
{
    struct cuda *c = cuda_of(be);
    cudaGraph_t graph = NULL;
    struct cuda_graph new = {.key = c->recording};
    if (!c->recording.owner)
        return error;
    c->recording = (struct pass_key){0};
    size_t nodes = 0;
    cudaError_t rc = cudaStreamEndCapture(c->stream, &graph);
    if (!error && rc == cudaSuccess)
        rc = cudaGraphGetNodes(graph, NULL, &nodes);
    if (!error && rc == cudaSuccess)
        rc = cudaGraphInstantiate(&new.exec, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    if (error)
        return error;
    TRY(cuda_check(be, rc, "recording a pass"));
    be->launches = c->launches_before + nodes; /* an operation may be several */
    c->graphs[c->n_graphs++] = new;
    /* Making a graph may wait for the device: no rank waits inside one before all have theirs. */
    if (be->comm.world > 1) {
        TRY(cuda_check(be, cudaGraphUpload(new.exec, c->stream), "recording a pass"));
        TRY(comm_barrier(&be->comm));
    }
    TRY(cuda_check(be, cudaGraphLaunch(new.exec, c->stream), "launching a recorded pass"));
    return 0;
}

void cuda_pass_forget(struct backend *be, const void *owner)
{
    struct cuda *c = cuda_of(be);
    for (int i = c->n_graphs - 1; i >= 0; i--)
        if (c->graphs[i].key.owner == owner) {
            cudaGraphExecDestroy(c->graphs[i].exec);
            c->graphs[i] = c->graphs[--c->n_graphs];
        }
}

void cuda_close_graphs(struct cuda *c)
{
    while (c->n_graphs > 0)
        cudaGraphExecDestroy(c->graphs[--c->n_graphs].exec);
}

int cuda_mark(struct backend *be, int i)
{
    struct cuda *c = cuda_of(be);
    if (!c->marks[i])
        TRY(cuda_check(be, cudaEventCreate(&c->marks[i]), "creating an event"));
    return cuda_check(be, cudaEventRecord(c->marks[i], c->stream), "enqueuing a time stamp");
}

/* From stamp to stamp, so that a long series loses no digits to its length. */
int cuda_marks(struct backend *be, int n, int64_t *ns)
{
    const struct cuda *c = cuda_of(be);
    for (int i = 0; i < n; i++) {
        float ms = 0;
        if (i > 0)
            TRY(cuda_check(be, cudaEventElapsedTime(&ms, c->marks[i - 1], c->marks[i]),
                           "reading a time stamp"));
        ns[i] = (i > 0 ? ns[i - 1] : 0) + (int64_t)(1e6 * (double)ms);
    }
    return 0;
}

void cuda_close_marks(struct cuda *c)
{
    for (int i = 0; i < BACKEND_MARKS; i++)
        if (c->marks[i])
            cudaEventDestroy(c->marks[i]);
}
