# Python's fork server. The agent starts `python3 MAIN` with this file as `usercustomize`, the last thing that python
# imports before it opens its program, and here it stays. A child leaves this file by the ImportError of a customization
# that isn't there, and goes on as python itself does: it opens MAIN, runs it as __main__ with nothing beneath it, and
# ends as any python ends.
#
#   agent -> fd 3   "slot ctl out err\n": park a child; the last three are descriptors of the agent's
#   agent <- fd 4   "slot pid\n": it is parked, reading ctl
#   agent -> ctl    8 digits, the length of what follows; fields, each ended by a zero byte:
#                   merge, cwd, main, count of arguments, the arguments, then NAME=value
#
# Only what a fresh python has loaded by now is used, so that a child has the modules of a fresh python and no others.
import sys


def park():
    import gc
    import posix

    orders, reports = 3, 4
    warm, home, marker, agent = sys.path[0], sys.path[1], sys.argv[0], posix.getppid()
    os, site = sys.modules["os"], sys.modules["site"]

    def read_all(fd, size):
        parts = []
        while size:
            part = posix.read(fd, min(size, 1 << 20))
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def open_read(path):
        return posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)

    def utf32(text):
        return b"".join([ord(letter).to_bytes(4, "little") for letter in text])

    def find_names():
        """Where the interpreter keeps its program's name in its memory: each child is given another one."""
        fd = open_read("/proc/self/maps")
        lines = read_all(fd, 1 << 20).split(b"\n")
        posix.close(fd)
        fd = open_read("/proc/self/mem")
        needle, found = utf32(marker) + bytes(4), set()
        for line in lines:
            if not line.endswith(b"[heap]"):
                continue
            start, end = [int(part, 16) for part in line.split()[0].split(b"-")]
            for piece in range(start, end, 32768):
                data = posix.pread(fd, 32768 + len(needle), piece)
                at = data.find(needle)
                while at >= 0:
                    if at % 8 == 0:
                        found.add(piece + at)
                    at = data.find(needle, at + 4)
        posix.close(fd)
        return sorted(found)

    def stamp(path):
        try:
            found = posix.stat(path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    # What an interpreter reads while it starts. If one of these has changed since, a fresh one is started instead.
    watched = [sys.executable, site.getusersitepackages(), *site.getsitepackages()]
    watched += [home + "/" + name for name in ("sitecustomize", "sitecustomize.py", "usercustomize", "usercustomize.py")]
    stamps = [(path, stamp(path)) for path in watched]
    names = find_names()

    def exercise():
        """What each child does before it is used: a small program goes the way that its own will go."""
        space = {"__name__": "exercise", "__builtins__": __builtins__}
        exec(compile("class C:\n    def f(self, x):\n        return f'{x}'\nC().f(1)\n", "exercise", "exec"), space)

    def child(slot, ctl, out, err):
        posix.setpgid(0, 0)
        for path, cgroup in (("/proc/self/oom_score_adj", b"0"), ("/sys/fs/cgroup/box/cgroup.procs", b"0")):
            try:
                fd = posix.open(path, posix.O_WRONLY)
                posix.write(fd, cgroup)
                posix.close(fd)
            except OSError:
                pass
        theirs = "/proc/%d/fd/" % agent
        control = open_read(theirs + ctl)
        for name, to in ((out, 1), (err, 2)):
            fd = posix.open(theirs + name, posix.O_WRONLY)
            posix.dup2(fd, to)
            posix.close(fd)
        exercise()
        posix.write(reports, b"%s %d\n" % (slot.encode(), posix.getpid()))
        posix.close(orders)
        posix.close(reports)
        head = read_all(control, 8)
        if len(head) < 8:
            posix._exit(0)
        become(read_all(control, int(head)).split(b"\0"), control)

    def become(fields, control):
        posix.close(control)
        merge, cwd, main, count = fields[:4]
        count = 4 + int(count)
        arguments, pairs = fields[4:count], [pair.partition(b"=") for pair in fields[count:-1]]
        if merge == b"1":
            posix.dup2(1, 2)
        posix.chdir(cwd)
        main = main.decode()
        if not names or len(main) != len(marker) or any([stamp(path) != seen for path, seen in stamps]):
            environ = {name: value for name, _, value in pairs}
            posix.execve(sys.executable, [sys.executable, main, *arguments], environ)
        data = os.environ._data
        for name in data:
            posix.unsetenv(name)
        data.clear()
        posix.environ.clear()
        for name, _, value in pairs:
            posix.putenv(name, value)
            data[name] = posix.environ[name] = value
        new, fd = utf32(main), posix.open("/proc/self/mem", posix.O_WRONLY)
        for at in names:
            posix.pwrite(fd, new, at)
        posix.close(fd)
        sys.argv[:] = [main, *map(os.fsdecode, arguments)]
        sys.orig_argv[1:] = sys.argv
        sys.path.remove(warm)
        sys.path_importer_cache.pop(warm, None)

    # What lives now outlives each child: no collection has to look at it. But for the main module's names, which go with
    # their program: a dictionary is looked at again once something is put into it.
    main = sys.modules["__main__"].__dict__
    content = dict(main)
    main.clear()
    gc.collect()
    gc.freeze()
    main.update(content)
    del sys.modules["gc"]
    rest = b""
    while True:
        part = posix.read(orders, 4096)
        if not part:
            posix._exit(0)
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            first = posix.fork()
            if first:
                posix.waitpid(first, 0)
                continue
            # The agent is the parent of whom its parent leaves.
            if posix.fork():
                posix._exit(0)
            return child(*line.decode().split())


park()
raise ImportError("as if this file were not here", name="usercustomize")
