/* Cuts a file system off from its disk, as a power failure does: `power_cut MOUNT_POINT`.
 *
 * In C because the ioctl has no safe wrapper in Rust and the workspace forbids unsafe code. Compiled when a test needs
 * it. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>

/* linux/ext4.h: EXT4_IOC_SHUTDOWN. 2: the journal is not flushed first (EXT4_GOING_FLAGS_NOLOGFLUSH). */
#define SHUTDOWN _IOR('X', 125, unsigned int)
#define WITHOUT_JOURNAL 2

int main(int count, char **arguments)
{
    unsigned int how = WITHOUT_JOURNAL;
    int folder = count == 2 ? open(arguments[1], O_RDONLY | O_DIRECTORY) : -1;
    if (folder < 0 || ioctl(folder, SHUTDOWN, &how) < 0) {
        perror("power_cut");
        return 1;
    }
    return 0;
}
