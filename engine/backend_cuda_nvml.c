/* backend_cuda_nvml: what the GPU runs at now and what holds it back, by NVIDIA's management library. That
 * comes with the driver, not with the toolkit, and may be missing in a container: it is loaded when first
 * asked for, and without it nothing is known. Of its interface, stable by promise, four functions are named
 * here. */
#include "engine/backend_cuda.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 };
typedef void *nvml_device;

struct cuda_nvml {
    void *library; /* owned; NULL: there is none, or it does not know this GPU */
    nvml_device device;
    int (*clock_info)(nvml_device device, int which, unsigned *mhz);
    int (*reasons)(nvml_device device, unsigned long long *bits);
    int (*shutdown)(void);
};

static const struct {
    unsigned long long bit;
    const char *name;
} reasons[] = {{0x1, "idle"},
               {0x2, "application clocks"},
               {0x4, "power cap"},
               {0x8, "hardware slowdown"},
               {0x10, "sync boost"},
               {0x20, "temperature"},
               {0x40, "temperature (hardware)"},
               {0x80, "power brake"},
               {0x100, "display clocks"}};

/* ISO C has no conversion between pointers to data and to functions; POSIX says that the bytes are the same.
 */
static int find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static int find_all(struct cuda_nvml *n, const char *bus)
{
    int (*init)(void);
    int (*by_bus)(const char *bus, nvml_device *out);
    if (!find(n->library, "nvmlInit_v2", &init) || !find(n->library, "nvmlShutdown", &n->shutdown) ||
        !find(n->library, "nvmlDeviceGetHandleByPciBusId_v2", &by_bus) ||
        !find(n->library, "nvmlDeviceGetClockInfo", &n->clock_info))
        return 0;
    if (!find(n->library, "nvmlDeviceGetCurrentClocksEventReasons", &n->reasons) &&
        !find(n->library, "nvmlDeviceGetCurrentClocksThrottleReasons", &n->reasons)) /* older drivers' */
        return 0;
    if (init() != 0)
        return 0;
    if (by_bus(bus, &n->device) == 0)
        return 1;
    n->shutdown();
    return 0;
}

static void open_library(struct cuda_nvml *n)
{
    char bus[32] = "";
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess) {
        cudaGetLastError();
        return;
    }
    n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (n->library && !find_all(n, bus)) {
        dlclose(n->library);
        n->library = NULL;
    }
}

static void name_reasons(unsigned long long bits, char *out, size_t cap)
{
    size_t at = 0;
    snprintf(out, cap, "nothing");
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons && at < cap; i++)
        if (bits & reasons[i].bit)
            at += (size_t)snprintf(out + at, cap - at, "%s%s", at ? ", " : "", reasons[i].name);
}

void cuda_clocks(struct backend *be, struct backend_clocks *out)
{
    struct cuda *c = cuda_of(be);
    unsigned long long bits = 0;
    unsigned sm = 0, memory = 0;
    *out = (struct backend_clocks){.mhz = 0};
    if (!c->nvml) {
        c->nvml = calloc(1, sizeof *c->nvml);
        if (!c->nvml)
            return;
        open_library(c->nvml);
    }
    const struct cuda_nvml *n = c->nvml;
    if (!n->library)
        return;
    if (n->clock_info(n->device, NVML_CLOCK_SM, &sm) == 0)
        out->mhz = (int)sm;
    if (n->clock_info(n->device, NVML_CLOCK_MEM, &memory) == 0)
        out->memory_mhz = (int)memory;
    if (n->reasons(n->device, &bits) == 0)
        name_reasons(bits, out->slowed_by, sizeof out->slowed_by);
}

void cuda_close_nvml(struct cuda *c)
{
    if (c->nvml && c->nvml->library) {
        c->nvml->shutdown();
        dlclose(c->nvml->library);
    }
    free(c->nvml);
    c->nvml = NULL;
}
