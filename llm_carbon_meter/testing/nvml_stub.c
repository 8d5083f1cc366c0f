/* Our own libnvidia-ml.so.1 for machines without a GPU: plays the script named by NVML_STUB_SCRIPT.
 *
 * nvml_stub.py builds it, writes the scripts and documents their lines. The script is read again
 * when the variable, or the file behind it, changes. Times are seconds of CLOCK_MONOTONIC (the
 * clock of Python's time.monotonic()) after `origin`. Counters are the exact integral of the
 * scripted power. With NVML_STUB_LOG every counter read is appended as "seconds gpu millijoules".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    UNKNOWN = 999
};
enum { MAX_GPUS = 64, MAX_EVENTS = 256, NAME_SIZE = 96 };
enum { FIELD_ENERGY = 83, FIELD_AVERAGE = 185, FIELD_INSTANT = 186, FIELD_ENERGY_SCOPED = 191 };
enum { TYPE_UINT = 1, TYPE_ULL = 3 };
/* From this architecture on nvmlDeviceGetPowerUsage is the 1 s average (Ada 8, Hopper 9). */
enum { ADA = 8, HOPPER = 9 };
enum { FAST_MHZ = 1980, SLOW_MHZ = 900 };
enum sensor { ENERGY = 1, ENERGY_FIELD = 2, INSTANT = 4, AVERAGE = 8, USAGE = 16 };
enum kind { RESET, LOST, SLOW, PROCESS, MIG, MODULE, ZERO, THROTTLE, LAG };

struct point { double t, watts; };
/* amount: milliseconds of a slow call or a lag, the id of a process, reasons of slow clocks. */
struct event { enum kind kind; int gpu; double from, to, amount; };
struct profile { struct point *points; int count; };

struct script {
    int gpus, init_error;
    unsigned architecture;
    char name[NAME_SIZE], instance_name[NAME_SIZE];
    char own_name[MAX_GPUS][NAME_SIZE]; /* empty: as all */
    double origin, period_s, lag_s, cycle_s;
    struct profile power[MAX_GPUS];
    unsigned unsupported[MAX_GPUS];
    double limit_watts[MAX_GPUS]; /* 0: does not say */
    unsigned clock_mhz[MAX_GPUS]; /* 0: as by default */
    struct event events[MAX_EVENTS];
    int num_events;
};

/* Layout of nvmlFieldValue_t, c_nvmlFieldValue_t in pynvml.py. */
struct field_value {
    uint32_t field, scope;
    int64_t timestamp_us, latency_us;
    uint32_t type, result;
    union { double d; uint32_t ui; uint64_t ull; } value;
};
_Static_assert(sizeof(struct field_value) == 40, "nvmlFieldValue_t has 40 bytes");

/* A handle points here: first the GPUs, then one MIG slice per GPU. */
struct device { char unused; };
static struct device devices[2 * MAX_GPUS];

static struct script script;
static bool usable;
static int sessions;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- the script ---- */

static bool number(const char *word, double *out)
{
    char *end;
    if (word == NULL)
        return false;
    *out = strtod(word, &end);
    return end != word && *end == '\0' && isfinite(*out);
}

static bool next_number(char **rest, double *out)
{
    return number(strtok_r(NULL, " \t", rest), out);
}

static bool next_gpu(char **rest, int *gpu)
{
    double value;
    if (!next_number(rest, &value) || value < 0 || value >= MAX_GPUS)
        return false;
    *gpu = (int)value;
    return true;
}

static bool parse_power(char **rest)
{
    int gpu;
    if (!next_gpu(rest, &gpu))
        return false;
    struct profile *profile = &script.power[gpu];
    for (char *word; (word = strtok_r(NULL, " \t", rest)) != NULL;) {
        struct point point;
        if (!number(word, &point.t) || !next_number(rest, &point.watts))
            return false;
        if (profile->count > 0 && point.t < profile->points[profile->count - 1].t)
            return false;
        profile->points = realloc(profile->points, (profile->count + 1) * sizeof(struct point));
        profile->points[profile->count++] = point;
    }
    return profile->count > 0;
}

static const struct { const char *word; enum kind kind; } events[] = {
    {"reset", RESET}, {"lost", LOST}, {"slow_ms", SLOW}, {"process", PROCESS},
    {"mig", MIG}, {"module", MODULE}, {"zero", ZERO}, {"throttle", THROTTLE},
    {"lag", LAG},
};

static bool parse_event(enum kind kind, char **rest)
{
    if (script.num_events == MAX_EVENTS)
        return false;
    struct event *event = &script.events[script.num_events];
    event->kind = kind;
    if (!next_gpu(rest, &event->gpu) || !next_number(rest, &event->from))
        return false;
    if (kind != RESET && kind != LAG && !next_number(rest, &event->to))
        return false;
    bool has_amount = kind == SLOW || kind == PROCESS || kind == THROTTLE || kind == LAG;
    if (has_amount && !next_number(rest, &event->amount))
        return false;
    script.num_events++;
    return true;
}

static bool parse_unsupported(char **rest)
{
    static const struct { const char *word; unsigned sensors; } known[] = {
        {"energy", ENERGY | ENERGY_FIELD}, {"energy_field", ENERGY_FIELD},
        {"instant", INSTANT}, {"average", AVERAGE}, {"usage", USAGE},
    };
    int gpu;
    char *word = next_gpu(rest, &gpu) ? strtok_r(NULL, " \t", rest) : NULL;
    for (size_t i = 0; word != NULL && i < sizeof known / sizeof *known; i++)
        if (strcmp(word, known[i].word) == 0) {
            script.unsupported[gpu] |= known[i].sensors;
            return true;
        }
    return false;
}

static bool parse_limit(char **rest)
{
    int gpu;
    return next_gpu(rest, &gpu) && next_number(rest, &script.limit_watts[gpu]);
}

static bool parse_own_name(char **rest)
{
    int gpu;
    if (!next_gpu(rest, &gpu))
        return false;
    snprintf(script.own_name[gpu], NAME_SIZE, "%s", *rest);
    return true;
}

static bool parse_clock(char **rest)
{
    int gpu;
    double mhz;
    if (!next_gpu(rest, &gpu) || !next_number(rest, &mhz))
        return false;
    script.clock_mhz[gpu] = (unsigned)mhz;
    return true;
}

static bool parse_scalar(const char *key, double value)
{
    if (strcmp(key, "gpus") == 0 && value >= 1 && value <= MAX_GPUS)
        script.gpus = (int)value;
    else if (strcmp(key, "origin") == 0)
        script.origin = value;
    else if (strcmp(key, "period_ms") == 0 && value >= 0)
        script.period_s = value / 1000;
    else if (strcmp(key, "lag_ms") == 0 && value >= 0)
        script.lag_s = value / 1000;
    else if (strcmp(key, "cycle") == 0 && value > 0)
        script.cycle_s = value;
    else if (strcmp(key, "init_error") == 0)
        script.init_error = (int)value;
    else if (strcmp(key, "architecture") == 0)
        script.architecture = (unsigned)value;
    else
        return false;
    return true;
}

static bool parse_line(char *line)
{
    char *rest = NULL;
    line[strcspn(line, "#\r\n")] = '\0';
    char *key = strtok_r(line, " \t", &rest);
    if (key == NULL)
        return true;
    if (strcmp(key, "name") == 0 || strcmp(key, "instance") == 0) {
        char *name = key[0] == 'n' ? script.name : script.instance_name;
        snprintf(name, NAME_SIZE, "%s", rest);
        return true;
    }
    if (strcmp(key, "own_name") == 0)
        return parse_own_name(&rest);
    if (strcmp(key, "limit") == 0)
        return parse_limit(&rest);
    if (strcmp(key, "clock") == 0)
        return parse_clock(&rest);
    if (strcmp(key, "power") == 0)
        return parse_power(&rest);
    if (strcmp(key, "unsupported") == 0)
        return parse_unsupported(&rest);
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        if (strcmp(key, events[i].word) == 0)
            return parse_event(events[i].kind, &rest);
    double value;
    return next_number(&rest, &value) && parse_scalar(key, value);
}

static void forget_script(void)
{
    for (int gpu = 0; gpu < MAX_GPUS; gpu++)
        free(script.power[gpu].points);
    memset(&script, 0, sizeof script);
    script.gpus = 1;
    script.architecture = HOPPER;
    strcpy(script.name, "NVML stub");
    strcpy(script.instance_name, "NVML stub MIG 1g.10gb");
}

static bool load(const char *path)
{
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t size = 0;
    bool good = file != NULL;
    forget_script();
    for (int row = 1; good && getline(&line, &size, file) >= 0; row++)
        if (!parse_line(line)) {
            fprintf(stderr, "nvml_stub: %s line %d: cannot be read\n", path, row);
            good = false;
        }
    free(line);
    if (file != NULL)
        fclose(file);
    return good;
}

/* Reads the script again if another is named or the file was replaced. Needs the lock. */
static void refresh(void)
{
    static char seen_path[4096];
    static struct stat seen;
    struct stat now;
    const char *path = getenv("NVML_STUB_SCRIPT");
    if (path == NULL || stat(path, &now) != 0) {
        usable = false;
        seen_path[0] = '\0';
        return;
    }
    if (strcmp(path, seen_path) == 0 && now.st_ino == seen.st_ino && now.st_size == seen.st_size &&
        now.st_mtim.tv_sec == seen.st_mtim.tv_sec && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
        return;
    snprintf(seen_path, sizeof seen_path, "%s", path);
    seen = now;
    usable = load(path);
}

/* ---- physics ---- */

static double clock_s(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

/* Joules from the first point to t. */
static double antiderivative(const struct profile *profile, double t)
{
    const struct point *p = profile->points;
    int last = profile->count - 1;
    double joules = 0;
    if (t <= p[0].t)
        return (t - p[0].t) * p[0].watts;
    for (int i = 0; i < last; i++) {
        double width = p[i + 1].t - p[i].t;
        if (t < p[i + 1].t) {
            double part = t - p[i].t;
            return joules + part * (p[i].watts + (p[i + 1].watts - p[i].watts) * part / width / 2);
        }
        joules += (p[i].watts + p[i + 1].watts) / 2 * width;
    }
    return joules + (t - p[last].t) * p[last].watts;
}

/* Joules of a GPU from the origin to t. */
static double integral(int gpu, double t)
{
    const struct profile *profile = &script.power[gpu];
    if (profile->count == 0)
        return 0;
    double zero = antiderivative(profile, 0);
    if (script.cycle_s == 0)
        return antiderivative(profile, t) - zero;
    double cycles = floor(t / script.cycle_s);
    double part = t - cycles * script.cycle_s;
    return cycles * (antiderivative(profile, script.cycle_s) - zero) +
           antiderivative(profile, part) - zero;
}

static double watts(int gpu, double t)
{
    const struct profile *profile = &script.power[gpu];
    const struct point *p = profile->points;
    if (profile->count == 0)
        return 0;
    if (script.cycle_s > 0)
        t -= floor(t / script.cycle_s) * script.cycle_s;
    if (t < p[0].t)
        return p[0].watts;
    for (int i = 0; i + 1 < profile->count; i++)
        if (t < p[i + 1].t)
            return p[i].watts +
                   (p[i + 1].watts - p[i].watts) * (t - p[i].t) / (p[i + 1].t - p[i].t);
    return p[profile->count - 1].watts;
}

static double mean_watts(int gpu, double t)
{
    return integral(gpu, t) - integral(gpu, t - 1); /* over 1 s */
}

static const struct event *active(enum kind kind, int gpu, double t);

/* The time whose joules the counter shows at t; while a lag grows the counter stands still. */
static double lagged(int gpu, double t)
{
    double lag_s = script.lag_s, reached = -INFINITY;
    for (int i = 0; i < script.num_events; i++) {
        const struct event *event = &script.events[i];
        if (event->kind == LAG && event->gpu == gpu && event->from <= t) {
            reached = fmax(reached, event->from - lag_s);
            lag_s = event->amount / 1000;
        }
    }
    return fmax(reached, t - lag_s);
}

/* What the counter shows at t: everything up to the last tick, since the last reset. */
static uint64_t counter_millijoules(int gpu, double t)
{
    if (active(ZERO, gpu, t))
        return 0;
    double shown = lagged(gpu, t), start = 0;
    if (script.period_s > 0)
        shown = floor(shown / script.period_s) * script.period_s;
    for (int i = 0; i < script.num_events; i++) {
        const struct event *event = &script.events[i];
        if (event->kind == RESET && event->gpu == gpu && event->from <= shown)
            start = fmax(start, event->from);
    }
    double joules = integral(gpu, shown) - integral(gpu, start);
    return joules > 0 ? (uint64_t)floor(joules * 1000) : 0;
}

static uint64_t read_counter(int gpu)
{
    double now = clock_s(CLOCK_MONOTONIC);
    uint64_t millijoules = counter_millijoules(gpu, now - script.origin);
    const char *path = getenv("NVML_STUB_LOG");
    int file = path == NULL ? -1 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (file >= 0) {
        char line[96];
        int size = snprintf(line, sizeof line, "%.9f %d %llu\n", now, gpu,
                            (unsigned long long)millijoules);
        if (write(file, line, size) != size) /* one write: lines of several processes stay whole */
            perror("nvml_stub: NVML_STUB_LOG");
        close(file);
    }
    return millijoules;
}

static unsigned milliwatts(double value)
{
    return (unsigned)lround(value * 1000);
}

/* ---- faults ---- */

static const struct event *active(enum kind kind, int gpu, double t)
{
    for (int i = 0; i < script.num_events; i++) {
        const struct event *event = &script.events[i];
        if (event->kind == kind && event->gpu == gpu && event->from <= t && t < event->to)
            return event;
    }
    return NULL;
}

static bool happening(enum kind kind, int gpu)
{
    return active(kind, gpu, clock_s(CLOCK_MONOTONIC) - script.origin) != NULL;
}

static int gpu_result(int gpu)
{
    if (sessions == 0)
        return UNINITIALIZED;
    if (!usable)
        return UNKNOWN;
    if (gpu < 0 || gpu >= script.gpus)
        return INVALID_ARGUMENT;
    if (happening(LOST, gpu))
        return GPU_IS_LOST;
    return SUCCESS;
}

/* Takes the lock for a call on a device; every path after it ends in leave(). */
static int enter(const struct device *device, int *gpu)
{
    pthread_mutex_lock(&lock);
    refresh();
    ptrdiff_t index = device - devices;
    *gpu = device == NULL || index < 0 || index >= 2 * MAX_GPUS ? -1 : (int)(index % MAX_GPUS);
    return gpu_result(*gpu);
}

static int leave(int result)
{
    pthread_mutex_unlock(&lock);
    return result;
}

static bool is_slice(const struct device *device)
{
    return device >= devices + MAX_GPUS;
}

/* As enter, for a sensor: a slow one sleeps here, and a MIG slice has none. */
static int enter_sensor(const struct device *device, int *gpu, enum sensor sensor)
{
    int result = enter(device, gpu);
    const struct event *slow = *gpu < 0 ? NULL :
        active(SLOW, *gpu, clock_s(CLOCK_MONOTONIC) - script.origin);
    if (slow != NULL) {
        useconds_t pause_us = (useconds_t)(slow->amount * 1000);
        pthread_mutex_unlock(&lock);
        usleep(pause_us);
        result = enter(device, gpu);
    }
    if (result == SUCCESS && (is_slice(device) || (script.unsupported[*gpu] & sensor)))
        result = NOT_SUPPORTED;
    return result;
}

static int put_text(char *out, unsigned size, const char *text)
{
    return snprintf(out, size, "%s", text) < (int)size ? SUCCESS : INSUFFICIENT_SIZE;
}

/* ---- the symbols that nvidia-ml-py calls ---- */

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    pthread_mutex_lock(&lock);
    refresh();
    int result = !usable ? DRIVER_NOT_LOADED : script.init_error;
    sessions += result == SUCCESS;
    return leave(result);
}

EXPORT int nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT int nvmlShutdown(void)
{
    pthread_mutex_lock(&lock);
    int result = sessions > 0 ? SUCCESS : UNINITIALIZED;
    sessions -= sessions > 0;
    return leave(result);
}

EXPORT const char *nvmlErrorString(int result)
{
    return result == SUCCESS ? "Success" : "an error of the NVML stub";
}

EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    return put_text(out, size, "stub");
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count)
{
    pthread_mutex_lock(&lock);
    refresh();
    *count = usable ? script.gpus : 0;
    return leave(sessions == 0 ? UNINITIALIZED : usable ? SUCCESS : UNKNOWN);
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device)
{
    int gpu;
    if (index >= MAX_GPUS)
        return INVALID_ARGUMENT;
    *device = &devices[index];
    return leave(enter(*device, &gpu));
}

EXPORT int nvmlDeviceGetUUID(struct device *device, char *out, unsigned size)
{
    int gpu, result = enter(device, &gpu);
    if (result == SUCCESS &&
        snprintf(out, size, "%s-00000000-0000-0000-0000-%012d", is_slice(device) ? "MIG" : "GPU",
                 gpu) >= (int)size)
        result = INSUFFICIENT_SIZE;
    return leave(result);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **device)
{
    char end;
    int gpu, found, slice = strncmp(uuid, "MIG-", 4) == 0;
    const char *pattern = slice ? "MIG-00000000-0000-0000-0000-%12d%c"
                                : "GPU-00000000-0000-0000-0000-%12d%c";
    if (strlen(uuid) != 40 || sscanf(uuid, pattern, &found, &end) != 1 || found < 0 ||
        found >= MAX_GPUS)
        return NOT_FOUND;
    *device = &devices[found + slice * MAX_GPUS];
    int result = enter(*device, &gpu);
    if (result == INVALID_ARGUMENT || (result == SUCCESS && slice && !happening(MIG, gpu)))
        result = NOT_FOUND;
    return leave(result);
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct device *slice, struct device **gpu)
{
    int number, result = enter(slice, &number);
    if (result == SUCCESS && !is_slice(slice))
        result = INVALID_ARGUMENT;
    if (result == SUCCESS)
        *gpu = &devices[number];
    return leave(result);
}

EXPORT int nvmlDeviceGetName(struct device *device, char *out, unsigned size)
{
    int gpu, result = enter(device, &gpu);
    const char *own = result == SUCCESS ? script.own_name[gpu] : "";
    const char *name = is_slice(device) ? script.instance_name : *own ? own : script.name;
    return leave(result == SUCCESS ? put_text(out, size, name) : result);
}

EXPORT int nvmlDeviceGetArchitecture(struct device *device, unsigned *architecture)
{
    int gpu, result = enter(device, &gpu);
    *architecture = script.architecture;
    return leave(result);
}

EXPORT int nvmlDeviceGetEnforcedPowerLimit(struct device *device, unsigned *limit)
{
    int gpu, result = enter(device, &gpu);
    if (result == SUCCESS && (is_slice(device) || script.limit_watts[gpu] <= 0))
        result = NOT_SUPPORTED;
    if (result == SUCCESS)
        *limit = milliwatts(script.limit_watts[gpu]);
    return leave(result);
}

EXPORT int nvmlDeviceGetPowerManagementLimitConstraints(struct device *device, unsigned *lowest,
                                                        unsigned *highest)
{
    *lowest = 0;
    return nvmlDeviceGetEnforcedPowerLimit(device, highest);
}

EXPORT int nvmlDeviceGetDefaultApplicationsClock(struct device *device, int clock, unsigned *mhz)
{
    (void)clock;
    int gpu, result = enter(device, &gpu);
    *mhz = FAST_MHZ;
    return leave(result);
}

EXPORT int nvmlDeviceGetApplicationsClock(struct device *device, int clock, unsigned *mhz)
{
    (void)clock;
    int gpu, result = enter(device, &gpu);
    *mhz = result == SUCCESS && script.clock_mhz[gpu] > 0 ? script.clock_mhz[gpu] : FAST_MHZ;
    return leave(result);
}

EXPORT int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending)
{
    int gpu, result = enter(device, &gpu);
    *current = *pending = result == SUCCESS && happening(MIG, gpu);
    return leave(result);
}

static const struct event *throttled(int gpu)
{
    return active(THROTTLE, gpu, clock_s(CLOCK_MONOTONIC) - script.origin);
}

EXPORT int nvmlDeviceGetCurrentClocksEventReasons(struct device *device, uint64_t *reasons)
{
    int gpu, result = enter(device, &gpu);
    const struct event *event = result == SUCCESS ? throttled(gpu) : NULL;
    *reasons = event == NULL ? 0 : (uint64_t)event->amount;
    return leave(result);
}

EXPORT int nvmlDeviceGetClockInfo(struct device *device, int clock, unsigned *mhz)
{
    (void)clock;
    int gpu, result = enter(device, &gpu);
    *mhz = result == SUCCESS && throttled(gpu) != NULL ? SLOW_MHZ : FAST_MHZ;
    return leave(result);
}

/* Grace Hopper: nvmlC2cModeInfo_v1_t is one unsigned. */
EXPORT int nvmlDeviceGetC2cModeInfoV(struct device *device, unsigned *enabled)
{
    int gpu, result = enter(device, &gpu);
    *enabled = result == SUCCESS && happening(MODULE, gpu);
    return leave(result);
}

/* Layout of nvmlProcessInfo_t (v3), c_nvmlProcessInfo_v3_t in pynvml.py. */
struct process { uint32_t pid; uint64_t used_bytes; uint32_t gpu_instance, compute_instance; };

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned *count,
                                                   struct process *processes)
{
    unsigned found = 0, room = *count;
    int gpu, result = enter_sensor(device, &gpu, 0);
    double t = clock_s(CLOCK_MONOTONIC) - script.origin;
    for (int i = 0; result == SUCCESS && i < script.num_events; i++) {
        const struct event *event = &script.events[i];
        if (event->kind != PROCESS || event->gpu != gpu || t < event->from || t >= event->to)
            continue;
        if (found < room && processes != NULL)
            processes[found] = (struct process){.pid = (uint32_t)event->amount};
        found++;
    }
    *count = found;
    if (result == SUCCESS && found > room)
        result = INSUFFICIENT_SIZE;
    return leave(result);
}

EXPORT int nvmlDeviceGetTotalEnergyConsumption(struct device *device, uint64_t *millijoules)
{
    int gpu, result = enter_sensor(device, &gpu, ENERGY);
    if (result == SUCCESS)
        *millijoules = read_counter(gpu);
    return leave(result);
}

EXPORT int nvmlDeviceGetPowerUsage(struct device *device, unsigned *power)
{
    int gpu, result = enter_sensor(device, &gpu, USAGE);
    if (result == SUCCESS) {
        double t = clock_s(CLOCK_MONOTONIC) - script.origin;
        *power = milliwatts(script.architecture >= ADA ? mean_watts(gpu, t) : watts(gpu, t));
    }
    return leave(result);
}

static int read_field(int gpu, struct field_value *field)
{
    double t = clock_s(CLOCK_MONOTONIC) - script.origin;
    bool energy = field->field == FIELD_ENERGY || field->field == FIELD_ENERGY_SCOPED;
    unsigned sensor = energy ? ENERGY_FIELD : field->field == FIELD_AVERAGE ? AVERAGE :
                      field->field == FIELD_INSTANT ? INSTANT : 0;
    if (sensor == 0 || (script.unsupported[gpu] & sensor))
        return NOT_SUPPORTED;
    field->type = energy ? TYPE_ULL : TYPE_UINT;
    if (energy)
        field->value.ull = read_counter(gpu);
    else
        field->value.ui = milliwatts(sensor == AVERAGE ? mean_watts(gpu, t) : watts(gpu, t));
    return SUCCESS;
}

EXPORT int nvmlDeviceGetFieldValues(struct device *device, int count, struct field_value *fields)
{
    double began_s = clock_s(CLOCK_MONOTONIC);
    int gpu, result = enter_sensor(device, &gpu, 0);
    for (int i = 0; result == SUCCESS && i < count; i++) {
        memset(&fields[i].value, 0, sizeof fields[i].value);
        fields[i].result = read_field(gpu, &fields[i]);
        fields[i].timestamp_us = (int64_t)(clock_s(CLOCK_REALTIME) * 1e6);
        fields[i].latency_us = (int64_t)((clock_s(CLOCK_MONOTONIC) - began_s) * 1e6);
    }
    return leave(result);
}
