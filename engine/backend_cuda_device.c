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

static void describe_device(FILE *out, int device)
{
    struct cudaDeviceProp prop;
    int driver = 0, runtime = 0;
    size_t free_bytes = 0, total = 0;
    if (cudaGetDeviceProperties(&prop, device) != cudaSuccess) {
        fprintf(out, "cuda %d: cannot be asked: %s\n", device, cudaGetErrorString(cudaGetLastError()));
        return;
    }
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    fprintf(out, "cuda %d: %s\n    compute capability %d.%d, %d multiprocessors, %.1f GiB of memory", device,
            prop.name, prop.major, prop.minor, prop.multiProcessorCount,
            (double)prop.totalGlobalMem / 0x1p30);
    if (cudaSetDevice(device) == cudaSuccess && cudaMemGetInfo(&free_bytes, &total) == cudaSuccess)
        fprintf(out, ", %.1f GiB free", (double)free_bytes / 0x1p30);
    fprintf(out, "\n    driver for CUDA %d.%d, runtime %d.%d\n", driver / 1000, driver % 1000 / 10,
            runtime / 1000, runtime % 1000 / 10);
    if (check_capability(&prop))
        fprintf(out, "    cannot be used: %s\n", err_text());
}

void cuda_describe(FILE *out)
{
    int n = 0;
    if (count_devices(&n))
        fprintf(out, "cuda: cannot be used: %s\n", err_text());
    for (int i = 0; i < n; i++)
        describe_device(out, i);
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
    snprintf(be->isa, sizeof be->isa, "sm_%d%d", prop.major % 100, prop.minor % 100);
    snprintf(be->device, sizeof be->device, "%.60s (%s, driver %d.%d, runtime %d.%d)", prop.name, be->isa,
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return 0;
}
