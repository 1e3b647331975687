"""The small programs that the suite's images need and that Debian's busybox lacks, as C sources."""

#: Prints the effective user id; the image carries it set-uid root, so that it tells whether privileges were gained.
EFFECTIVE_UID = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) { return printf("Effective uid: %d\n", (int)geteuid()) < 0; }
"""

#: `pgrep NAME`: the ids of the processes whose name contains NAME.
PGREP = r"""
#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **arguments) {
    glob_t found;
    int any = 0, pid;
    if (count != 2 || glob("/proc/[0-9]*/comm", 0, 0, &found)) return 2;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char name[32] = "";
        FILE *file = fopen(found.gl_pathv[i], "r");
        if (!file) continue;
        if (fgets(name, sizeof name, file) && strstr(name, arguments[1]) &&
            sscanf(found.gl_pathv[i], "/proc/%d", &pid) == 1 && pid != getpid()) any = printf("%d\n", pid) > 0;
        fclose(file);
    }
    return !any;
}
"""

#: `ipcs -m`: the shared memory segments of the IPC namespace, a line each with the key in hexadecimal first.
IPCS = r"""
#include <stdio.h>
int main(void) {
    FILE *file = fopen("/proc/sysvipc/shm", "r");
    unsigned key, mode, identifier;
    unsigned long size;
    if (!file || fscanf(file, "%*[^\n]") == EOF) return 1;
    puts("key        shmid      perms      bytes");
    while (fscanf(file, "%d %u %o %lu %*[^\n]", (int *)&key, &identifier, &mode, &size) == 4)
        printf("0x%08x %-10u %-10o %lu\n", key, identifier, mode & 0777, size);
    return 0;
}
"""
