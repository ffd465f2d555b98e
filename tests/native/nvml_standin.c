/* A stand-in for libnvidia-ml.so.1: enough of NVML for the probe's tests, with no GPU and no driver.
 *
 * NVML_STANDIN names a scenario file, one fact a line. It is read again when it changes, so that a test can lose
 * a GPU or restart the driver while a process watches. Memory in MiB; -1 means "not available".
 *
 *   init CODE                 every call fails with CODE (9: the driver is gone)
 *   hang 1                    no reading of memory ends before this line is gone
 *   gpu N                     a GPU; lines after it, and before the next, speak of it
 *   mig N                     an instance on the GPU above; the following lines speak of it
 *   set KEY VALUE             a reading; what is not set is "not supported"
 *   fail KEY CODE             a reading that fails; "fail device CODE": all of them; "fail open CODE": no handle
 *   proc KIND PID USED        a process: c compute, g graphics, m MPS
 *   xid NUMBER                an event, delivered once per process
 *
 * Compiled with -DOLD_DRIVER it lacks what drivers before 510 lack. Layouts and codes follow nvml.h.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10 };
enum { GPUS = 8, MIGS = 7, PROCS = 64, KEYS = 24, XIDS = 16 };
#define MIB (1024ULL * 1024ULL)

typedef struct { char kind; int pid; long used; } Proc;
typedef struct { char key[16]; long value; int code; } Fact;
typedef struct Device {
    int present, index, parent; /* parent: -1 for a whole GPU */
    Fact facts[KEYS]; int nfacts;
    Proc procs[PROCS]; int nprocs;
    int xids[XIDS]; int nxids, delivered;
} Device;

static Device devices[GPUS * (MIGS + 1)]; /* GPU n at n, its instance m at GPUS + n * MIGS + m */
static int init_code, hangs, initialised;
static struct timespec seen;
static ino_t seen_inode;

static void load(void) {
    const char *path = getenv("NVML_STANDIN");
    struct stat now;
    if (!path || stat(path, &now)) return;
    if (now.st_ino == seen_inode && now.st_mtim.tv_sec == seen.tv_sec && now.st_mtim.tv_nsec == seen.tv_nsec) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    seen = now.st_mtim;
    seen_inode = now.st_ino;
    int delivered[GPUS * (MIGS + 1)];
    for (int i = 0; i < GPUS * (MIGS + 1); i++) delivered[i] = devices[i].delivered;
    memset(devices, 0, sizeof devices);
    for (int i = 0; i < GPUS * (MIGS + 1); i++) devices[i].delivered = delivered[i];
    init_code = hangs = 0;
    char line[128], key[16], kind;
    Device *at = NULL;
    long number;
    int gpu = 0, pid;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "init %ld", &number) == 1) init_code = (int)number;
        else if (sscanf(line, "hang %ld", &number) == 1) hangs = (int)number;
        else if (sscanf(line, "gpu %ld", &number) == 1) {
            gpu = (int)number;
            at = &devices[gpu];
            at->present = 1, at->index = gpu, at->parent = -1;
        } else if (sscanf(line, "mig %ld", &number) == 1) {
            at = &devices[GPUS + gpu * MIGS + number];
            at->present = 1, at->index = (int)number, at->parent = gpu;
        } else if (at && at->nfacts < KEYS && sscanf(line, "set %15s %ld", key, &number) == 2) {
            strcpy(at->facts[at->nfacts].key, key);
            at->facts[at->nfacts++].value = number;
        } else if (at && at->nfacts < KEYS && sscanf(line, "fail %15s %ld", key, &number) == 2) {
            strcpy(at->facts[at->nfacts].key, key);
            at->facts[at->nfacts++].code = (int)number;
        } else if (at && at->nprocs < PROCS && sscanf(line, "proc %c %d %ld", &kind, &pid, &number) == 3)
            at->procs[at->nprocs++] = (Proc){kind, pid, number};
        else if (at && at->nxids < XIDS && sscanf(line, "xid %ld", &number) == 1)
            at->xids[at->nxids++] = (int)number;
    }
    fclose(file);
}

static int ready(void) {
    load();
    if (init_code) return init_code;
    return initialised ? OK : UNINITIALIZED;
}

static const Fact *find(const Device *device, const char *key) {
    for (int i = 0; i < device->nfacts; i++)
        if (!strcmp(device->facts[i].key, key)) return &device->facts[i];
    return NULL;
}

static int alive(const Device *device) {
    int code = ready();
    if (code) return code;
    if (!device || !device->present) return INVALID;
    const Fact *fact = find(device, "device");
    return fact ? fact->code : OK;
}

static int get(const Device *device, const char *key, long *value) {
    int code = alive(device);
    if (code) return code;
    const Fact *fact = find(device, key);
    if (!fact) return NOT_SUPPORTED;
    *value = fact->value;
    return fact->code;
}

static int get_uint(const Device *device, const char *key, unsigned *out) {
    long value = 0;
    int code = get(device, key, &value);
    if (!code) *out = (unsigned)value;
    return code;
}

static int get_ull(const Device *device, const char *key, unsigned long long *out) {
    long value = 0;
    int code = get(device, key, &value);
    if (!code) *out = (unsigned long long)value;
    return code;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    load();
    if (!init_code) initialised++;
    return init_code;
}

int nvmlShutdown(void) {
    if (!initialised) return UNINITIALIZED;
    initialised--;
    return OK;
}

const char *nvmlErrorString(int code) { (void)code; return "an error of the stand-in"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    int code = ready();
    if (!code) snprintf(out, size, "580.95.05");
    return code;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = ready();
    *count = 0;
    for (int i = 0; i < GPUS; i++) *count += (unsigned)devices[i].present;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
    int code = ready();
    if (code) return code;
    if (index >= GPUS || !devices[index].present) return INVALID;
    const Fact *fact = find(&devices[index], "open");
    *out = &devices[index];
    return fact ? fact->code : OK;
}

int nvmlDeviceGetName(Device *device, char *out, unsigned size) {
    int code = alive(device);
    if (!code) snprintf(out, size, device->parent < 0 ? "NVIDIA Stand-in" : "NVIDIA Stand-in MIG");
    return code;
}

int nvmlDeviceGetUUID(Device *device, char *out, unsigned size) {
    int code = alive(device);
    if (code) return code;
    if (device->parent < 0) snprintf(out, size, "GPU-%d0000000-1111-2222-3333-444444444444", device->index);
    else snprintf(out, size, "MIG-%d%d000000-1111-2222-3333-444444444444", device->parent, device->index);
    return OK;
}

static int memory(Device *device, long *total, long *used, long *reserved) {
    for (; hangs; load()) usleep(1000);
    int code = get(device, "total", total);
    if (!code) code = get(device, "used", used);
    *reserved = 0;
    if (!code) get(device, "reserved", reserved);
    return code;
}

typedef struct { unsigned long long total, free, used; } Memory;

int nvmlDeviceGetMemoryInfo(Device *device, Memory *out) {
    long total = 0, used = 0, reserved = 0;
    int code = memory(device, &total, &used, &reserved);
    out->total = (unsigned long long)total * MIB;
    out->used = (unsigned long long)(used + reserved) * MIB;
    out->free = out->total - out->used;
    return code;
}

#ifndef OLD_DRIVER
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *out) {
    long total = 0, used = 0, reserved = 0;
    if (out->version != 0x02000028) return 25;
    int code = memory(device, &total, &used, &reserved);
    out->total = (unsigned long long)total * MIB;
    out->reserved = (unsigned long long)reserved * MIB;
    out->used = (unsigned long long)used * MIB;
    out->free = out->total - out->reserved - out->used;
    return code;
}
#endif

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } ProcInfo;

static int processes(Device *device, char kind, unsigned *count, ProcInfo *out) {
    int code = alive(device);
    if (code) return code;
    const Fact *fact = find(device, "procs");
    if (fact) return fact->code;
    unsigned found = 0, room = *count;
    for (int i = 0; i < device->nprocs; i++) {
        if (device->procs[i].kind != kind) continue;
        if (out && found < room) {
            long used = device->procs[i].used;
            out[found] = (ProcInfo){(unsigned)device->procs[i].pid, used < 0 ? ~0ULL : (unsigned long long)used * MIB,
                                    device->parent < 0 ? ~0U : (unsigned)device->index, ~0U};
        }
        found++;
    }
    *count = found;
    return found > room || (found && !out) ? TOO_SMALL : OK;
}

#define LISTS(VERSION)                                                                                     \
    int nvmlDeviceGetComputeRunningProcesses_##VERSION(Device *d, unsigned *n, ProcInfo *out) {            \
        return processes(d, 'c', n, out);                                                                  \
    }                                                                                                      \
    int nvmlDeviceGetGraphicsRunningProcesses_##VERSION(Device *d, unsigned *n, ProcInfo *out) {           \
        return processes(d, 'g', n, out);                                                                  \
    }                                                                                                      \
    int nvmlDeviceGetMPSComputeRunningProcesses_##VERSION(Device *d, unsigned *n, ProcInfo *out) {         \
        return processes(d, 'm', n, out);                                                                  \
    }
LISTS(v2)
#ifndef OLD_DRIVER
LISTS(v3)
#endif

typedef struct { unsigned gpu, memory; } Load;

int nvmlDeviceGetUtilizationRates(Device *device, Load *out) {
    out->memory = 0;
    return get_uint(device, "util", &out->gpu);
}

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *out) {
    (void)sensor;
    return get_uint(device, "temp", out);
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *out) { return get_uint(device, "power", out); }

int nvmlDeviceGetTotalEccErrors(Device *device, int type, int counter, unsigned long long *out) {
    return type == 1 && counter == 0 ? get_ull(device, "ecc", out) : INVALID;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *out) {
    return get_ull(device, "throttle", out);
}

int nvmlDeviceGetRetiredPagesPendingStatus(Device *device, unsigned *out) { return get_uint(device, "retired", out); }

#ifndef OLD_DRIVER
int nvmlDeviceGetRemappedRows(Device *device, unsigned *cor, unsigned *unc, unsigned *pending, unsigned *failed) {
    int code = get_uint(device, "remap_pending", pending);
    *cor = *unc = 0;
    return code ? code : get_uint(device, "remap_failed", failed);
}

typedef struct {
    uint32_t id, scope;
    int64_t when, latency;
    unsigned type;
    int code;
    union { unsigned number; unsigned long long wide; double real; } value;
} FieldValue;

int nvmlDeviceGetFieldValues(Device *device, int count, FieldValue *out) {
    int code = alive(device);
    for (int i = 0; !code && i < count; i++)
        out[i].code = out[i].id == 230 ? get_uint(device, "recovery", &out[i].value.number) : NOT_SUPPORTED;
    return code;
}
#endif

int nvmlDeviceGetMigMode(Device *device, unsigned *now, unsigned *pending) {
    int code = get_uint(device, "mig", now);
    *pending = *now;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *out) {
    *out = MIGS;
    return alive(device);
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **out) {
    int code = alive(device);
    if (code) return code;
    if (index >= MIGS) return INVALID;
    *out = &devices[GPUS + device->index * MIGS + (int)index];
    return (*out)->present ? OK : NOT_FOUND;
}

typedef struct { Device *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;

int nvmlEventSetCreate(void **out) {
    *out = devices; /* never looked into */
    return ready();
}

int nvmlEventSetFree(void *set) { return set ? OK : INVALID; }

int nvmlDeviceRegisterEvents(Device *device, unsigned long long types, void *set) {
    return set && types == 8 ? alive(device) : INVALID;
}

int nvmlEventSetWait_v2(void *set, Event *out, unsigned timeout_ms) {
    int code = ready();
    if (code || !set) return code ? code : INVALID;
    for (int i = 0; i < GPUS; i++)
        if (devices[i].delivered < devices[i].nxids) {
            *out = (Event){&devices[i], 8, (unsigned long long)devices[i].xids[devices[i].delivered++], ~0U, ~0U};
            return OK;
        }
    usleep(timeout_ms * 1000);
    return TIMEOUT;
}
