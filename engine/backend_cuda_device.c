/* backend_cuda_device: which GPUs there are, why one cannot be used, and taking one. */
#include "engine/backend_cuda.h"
#include "engine/err.h"

/* How many GPUs there are, or why none can be used. */
static int count_devices(int *out)
{
    int driver = 0, runtime = CUDART_VERSION;
    cudaDriverGetVersion(&driver);
    if (driver == 0)
        FAIL(ERR_DEVICE,
             "no NVIDIA driver is loaded: install one for CUDA %d.%d or later; a container must be started "
             "with "
             "its GPUs",
             runtime / 1000, runtime % 1000 / 10);
    const cudaError_t rc = cudaGetDeviceCount(out);
    cudaGetLastError();
    if (rc == cudaErrorInsufficientDriver)
        FAIL(ERR_DEVICE, "the NVIDIA driver is for CUDA %d.%d, this program needs %d.%d: update the driver",
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (rc == cudaErrorNoDevice || (rc == cudaSuccess && *out == 0))
        FAIL(ERR_DEVICE,
             "the NVIDIA driver sees no GPU: see what nvidia-smi lists and CUDA_VISIBLE_DEVICES hides");
    if (rc != cudaSuccess)
        FAIL(ERR_DEVICE, "the CUDA runtime does not start: %s (%s)", cudaGetErrorString(rc),
             cudaGetErrorName(rc));
    return 0;
}

static int check_capability(const struct cudaDeviceProp *prop)
{
    if ((prop->major == 9 || prop->major == 10) && prop->minor == 0)
        return 0;
    FAIL(ERR_DEVICE, "%s has compute capability %d.%d: expected 9.0 (H100, H200) or 10.0 (B200)", prop->name,
         prop->major, prop->minor);
}

/* 0 where the runtime does not tell. */
static int attribute(enum cudaDeviceAttr which, int device)
{
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return value;
}

static int clock_mhz(int device)
{
    return attribute(cudaDevAttrClockRate, device) / 1000;
}

static int memory_mhz(int device)
{
    return attribute(cudaDevAttrMemoryClockRate, device) / 1000;
}

static void describe_memory(FILE *out, const struct cudaDeviceProp *prop, int device)
{
    size_t free_bytes = 0, total = 0;
    fprintf(out, "    %.1f GiB of memory at up to %d MHz", (double)prop->totalGlobalMem / 0x1p30,
            memory_mhz(device));
    if (cudaSetDevice(device) == cudaSuccess && cudaMemGetInfo(&free_bytes, &total) == cudaSuccess)
        fprintf(out, ", %.1f GiB free", (double)free_bytes / 0x1p30);
    else
        fprintf(out, "; it does not say how much is free: %s", cudaGetErrorString(cudaGetLastError()));
    fputc('\n', out);
}

static void describe_device(FILE *out, int device)
{
    struct cudaDeviceProp prop;
    if (cudaGetDeviceProperties(&prop, device) != cudaSuccess) {
        fprintf(out, "cuda %d: cannot be asked: %s\n", device, cudaGetErrorString(cudaGetLastError()));
        return;
    }
    fprintf(out,
            "cuda %d: %s\n    compute capability %d.%d, %d multiprocessors at up to %d MHz, %.0f MiB of L2\n",
            device, prop.name, prop.major, prop.minor, prop.multiProcessorCount, clock_mhz(device),
            (double)prop.l2CacheSize / 0x1p20);
    describe_memory(out, &prop, device);
    if (check_capability(&prop))
        fprintf(out, "    cannot be used: %s\n", err_text());
}

static const char *peer_word(int from, int to)
{
    int can = 0;
    if (from == to)
        return "-";
    if (cudaDeviceCanAccessPeer(&can, from, to) != cudaSuccess) {
        cudaGetLastError();
        return "?";
    }
    return can ? "yes" : "no";
}

/* Which GPU can read another's memory. */
static void describe_peers(FILE *out, int n)
{
    fprintf(out, "cuda: peer access, row reads column\n    %4s", "");
    for (int to = 0; to < n; to++)
        fprintf(out, " %4d", to);
    for (int from = 0; from < n; from++) {
        fprintf(out, "\n    %4d", from);
        for (int to = 0; to < n; to++)
            fprintf(out, " %4s", peer_word(from, to));
    }
    fputc('\n', out);
}

static void describe_versions(FILE *out)
{
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    fprintf(out, "cuda: driver for CUDA %d.%d, runtime %d.%d\n", driver / 1000, driver % 1000 / 10,
            runtime / 1000, runtime % 1000 / 10);
}

void cuda_describe(FILE *out)
{
    int n = 0;
    if (count_devices(&n))
        fprintf(out, "cuda: cannot be used: %s\n", err_text());
    else
        describe_versions(out);
    for (int i = 0; i < n; i++)
        describe_device(out, i);
    if (n > 1)
        describe_peers(out, n);
    err_clear();
}

int cuda_open_device(struct backend *be, int device)
{
    struct cudaDeviceProp prop;
    int count = 0, driver = 0, runtime = 0;
    TRY_CTX(count_devices(&count), "device 'cuda'");
    if (device < 0 || device >= count)
        FAIL(ERR_CONFIG, "device 'cuda': expected GPU 0 to %d, found %d", count - 1, device);
    TRY(cuda_check(be, cudaGetDeviceProperties(&prop, device), "asking for the GPU's properties"));
    TRY_CTX(check_capability(&prop), "device 'cuda'");
    TRY(cuda_check(be, cudaSetDevice(device), "taking the GPU"));
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    be->cache_bytes = (size_t)prop.l2CacheSize;
    be->clock_mhz = clock_mhz(device);
    be->memory_mhz = memory_mhz(device);
    snprintf(be->isa, sizeof be->isa, "sm_%d%d", prop.major % 100, prop.minor % 100);
    snprintf(be->device, sizeof be->device, "%.60s (%s, driver %d.%d, runtime %d.%d)", prop.name, be->isa,
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return 0;
}
