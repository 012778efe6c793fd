//! JavaScript programs whose end, output and errors show how they were run.

/// Name and text of each. `process.argv.slice(2)` is `a b`, `é` and the empty string; `VARIABLE` is `é=1`.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[
    ("hello", "console.log('Hello World!')"),
    ("an exception in a function", "function f() {\n  throw new Error('é');\n}\nconsole.log('before');\nf();\n"),
    ("a value that is thrown", "throw { a: 1 }"),
    ("a rejection", "Promise.reject(new TypeError('late'))"),
    ("a syntax error", "console.log('never');\nlet x = ;\n"),
    ("an exit code", "process.exitCode = 4; console.log('on')"),
    (
        "an exit in the middle",
        "process.on('exit', (code) => console.log('exit', code)); setTimeout(() => {}, 60000); process.exit(7)",
    ),
    ("a signal", "process.kill(process.pid, 'SIGTERM'); setTimeout(() => {}, 60000)"),
    ("abort", "process.abort()"),
    (
        "arguments and environment",
        "console.log(process.argv, process.argv0, process.execArgv, process.env, process.execPath, process.title)",
    ),
    (
        "names",
        "console.log(__filename, __dirname, typeof module, module.id, module.filename, module.paths, require.main, typeof exports, this === globalThis, process._preload_modules, Object.keys(require.cache), module.children)",
    ),
    ("globals", "console.log(Object.getOwnPropertyNames(globalThis).sort().join())"),
    (
        "the process",
        "console.log(process.cwd(), process.ppid, process.umask(), require('fs').readdirSync('/proc/self/fd').slice(0, 3), process.stdin.isTTY, process.stdout.constructor.name, process.listenerCount('exit'))",
    ),
    (
        "how nice its threads are",
        "const fs = require('fs'); const nice = (t) => fs.readFileSync(`/proc/self/task/${t}/stat`, 'utf8').split(') ').pop().split(' ')[16]; console.log(new Set(fs.readdirSync('/proc/self/task').map(nice)))",
    ),
    ("standard input", "process.stdin.on('data', (d) => console.log('data', d)).on('end', () => console.log('end'))"),
    ("a module in the home folder", "console.log(require('./neighbour').VALUE, require.resolve('./neighbour'))"),
    ("no such module", "require('no-such-module')"),
    ("import", "import('./neighbour.js').then((m) => console.log(m.default.VALUE, import.meta))"),
    ("a dynamic import", "import('fs').then((m) => console.log(typeof m.readFileSync))"),
    ("much output", "for (let i = 0; i < 20000; i++) console.log(i, 'x'.repeat(50))"),
    (
        "both outputs",
        "console.log('out'); console.error('err'); process.stdout.write('é€😀\\n'); process.stderr.write('end')",
    ),
    (
        "a child",
        "const c = require('child_process'); console.log(c.execSync('echo $VARIABLE; pwd; ls /proc/self/fd | wc -l').toString(), c.spawnSync('sh', ['-c', 'exit 3']).status); c.spawnSync('sh', ['-c', 'echo inherited; echo too >&2'], { stdio: 'inherit' })",
    ),
    (
        "a worker",
        "const { Worker } = require('worker_threads'); new Worker('console.log(process.argv.length, process.execArgv, typeof require)', { eval: true }).on('exit', (code) => console.log('exit', code))",
    ),
    (
        "a forked node",
        "require('fs').writeFileSync('/tmp/forked.js', 'process.send(process.execArgv)'); require('child_process').fork('/tmp/forked.js').on('message', (m) => console.log(m))",
    ),
    (
        "timers and order",
        "setTimeout(() => console.log(4)); setImmediate(() => console.log(5)); process.nextTick(() => console.log(2)); Promise.resolve().then(() => console.log(3)); console.log(1)",
    ),
    (
        "this and strictness",
        "x = 1; console.log(typeof x, (function () { return this === globalThis; })(), typeof await_)",
    ),
    (
        "an uncaught handler",
        "process.on('uncaughtException', (e, origin) => console.log('caught', e.message, origin)); null.x",
    ),
    ("a deep recursion", "function f() { return f() + 1; }\ntry { f() } catch (e) { console.log(e.name, e.message) }"),
    // Ends that are told before node is taken apart, and what keeps them from being.
    (
        "what is done before the exit",
        "let n = 0; process.on('beforeExit', (code) => { console.log('before', code); if (n++ < 2) setTimeout(() => console.log('again'), 1); })",
    ),
    (
        "exit handlers",
        "process.on('exit', (code) => { console.log('exit', code, process.exitCode); process.exitCode = 9; }); process.once('exit', async () => { await 1; console.log('later'); })",
    ),
    ("an exception in an exit handler", "process.on('exit', () => { throw new Error('late') })"),
    (
        "a rejection that is handled late",
        "const p = Promise.reject(new Error('r')); setTimeout(() => p.catch(() => console.log('caught')), 1); process.on('unhandledRejection', (e) => console.log('unhandled', e.message))",
    ),
    (
        "an emit of its own",
        "const e = process.emit; process.emit = function (name, ...rest) { if (name === 'exit') require('fs').writeSync(1, `${name} ${rest}\n`); return e.call(this, name, ...rest); }; console.log(process.emit === e, e === require('events').prototype.emit, Object.keys(process).includes('emit'))",
    ),
    (
        "an unreferenced worker",
        "const { Worker } = require('worker_threads'); const w = new Worker('setInterval(() => {}, 1000)', { eval: true }); w.unref(); console.log('end')",
    ),
    (
        "a server that holds nobody",
        "const s = require('net').createServer().listen(0, '127.0.0.1', () => console.log('listens')); s.unref(); setTimeout(() => {}, 50)",
    ),
    (
        "a child that is left",
        "const c = require('child_process').spawn('sh', ['-c', 'sleep 0.2; echo late'], { stdio: ['ignore', 'inherit', 'inherit'] }); c.on('exit', (code) => console.log('child', code))",
    ),
    (
        "a file stream",
        "const s = require('fs').createWriteStream('/tmp/stream'); s.write('x'.repeat(100000)); s.end(() => console.log(require('fs').statSync('/tmp/stream').size))",
    ),
];
