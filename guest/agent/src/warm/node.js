'use strict';
// What `node -` requires before it reads its program from standard input. Node goes on as it does and waits for the
// program; at its end, just before it is run, the process becomes what the agent tells.
//
//   agent <- fd 4   one byte: it is parked, reading its standard input
//   agent -> fd 5   a text and its end, to exercise with
//   agent -> fd 3   8 digits, the length of what follows; fields, each ended by a zero byte:
//                   merge, cwd, main (unused), count of arguments, the arguments, then NAME=value
//   agent <- ends   one byte, the exit code: all that can be seen of the program has been done. A descriptor of the
//                   agent's, the only argument
//
// A worker thread requires what its process was told to as well: nothing is left of that there either.
const forget = () => {
  process.execArgv.splice(0, 2);
  process._preload_modules.splice(0);
  delete require.cache[__filename];
};

if (!require('worker_threads').isMainThread) {
  forget();
} else {
  const fs = require('fs');
  const path = require('path');
  const v8 = require('v8');
  const vm = require('vm');

  const ends = `/proc/${process.ppid}/fd/${process.argv.pop()}`;

  const readExactly = (fd, size) => {
    const bytes = Buffer.allocUnsafeSlow(size);
    for (let at = 0; at < size;) {
      const read = fs.readSync(fd, bytes, at, size - at, null);
      if (read === 0) process.reallyExit(0);
      at += read;
    }
    return bytes;
  };

  // What each program goes through is gone through once: the three streams are opened, a text is formatted, a script run.
  const exercise = () => {
    void process.stdin;
    void process.stdout;
    void process.stderr;
    const { Writable } = require('stream');
    const nowhere = new Writable({ write(chunk, encoding, done) { done(); } });
    new console.Console(nowhere).log('%s', 'exercise', { a: [1] });
    vm.runInThisContext('(function () { return 1; })()', { filename: '[stdin]', displayErrors: true });
    // As node runs what it has read.
    const Module = require('module');
    const exercised = new Module('exercise');
    exercised.filename = path.join(process.cwd(), 'exercise');
    exercised.paths = Module._nodeModulePaths(process.cwd());
    exercised._compile('return (main) => main();', 'exercise-wrapper');
    void require('url').pathToFileURL(exercised.filename).href;
    process.stdout.write('');
  };

  // A program is read as the own one will be. Calls when that has ended.
  const exerciseReading = (then) => {
    const { Socket } = require('net');
    const program = new Socket({ fd: 5, readable: true, writable: false, manualStart: true });
    program.setEncoding('utf8');
    program.on('data', () => {});
    program.on('end', () => {});
    program.on('close', then);
  };

  // The first number that Math.random gives has V8 seed the context: from entropy that was drawn when the process began,
  // which all clones of a machine share, unless a seed is given. So it is given one, and none to those that come later.
  const reseed = () => {
    const fd = fs.openSync('/dev/urandom', 'r');
    const entropy = readExactly(fd, 6);
    fs.closeSync(fd);
    v8.setFlagsFromString(`--random-seed=${entropy.readInt32LE(0) || 1}`);
    for (let skipped = entropy.readUInt16LE(4) % 64; skipped >= 0; skipped--) Math.random();
    v8.setFlagsFromString('--random-seed=0');
  };

  // Each look at a variable is a call into the system's library.
  const environment = Object.entries(process.env).map(([name, value]) => `${name}=${value}`).join('\0');

  const become = (fields) => {
    const [merge, cwd, , count] = fields;
    const rest = fields.slice(4, -1);
    if (merge === '1') {
      // The lowest free number is given to what is opened next.
      fs.closeSync(2);
      fs.openSync('/proc/self/fd/1', 'w');
    }
    if (cwd !== process.cwd()) process.chdir(cwd);
    const pairs = rest.slice(Number(count));
    if (pairs.join('\0') !== environment) {
      for (const name of Object.keys(process.env)) delete process.env[name];
      for (const pair of pairs) {
        const at = pair.indexOf('=');
        process.env[pair.slice(0, at)] = pair.slice(at + 1);
      }
    }
    process.argv.push(...rest.slice(0, Number(count)));
  };

  // Node takes itself apart when its program has ended, for longer than most programs take, though nobody can see it. So,
  // where that is certain, the exit code is told and the process leaves. Only `emit` is looked up at that moment, and it is
  // the function that it always is.
  const leaveEarly = () => {
    const { openSync, writeSync } = fs;
    const { kill, pid } = process;
    const { getOwnPropertyDescriptor } = Object;
    const isExiting = getOwnPropertyDescriptor(process, '_exiting').get;
    const { cache } = require;
    const { emit } = require('events').prototype;

    // Whether node itself asks: no function of a program is beneath.
    const isAlone = () => {
      const { stackTraceLimit, prepareStackTrace } = Error;
      Error.stackTraceLimit = 3;
      Error.prepareStackTrace = (_, frames) => frames.length;
      const depth = new Error().stack;
      Error.stackTraceLimit = stackTraceLimit;
      if (prepareStackTrace === undefined) delete Error.prepareStackTrace;
      else Error.prepareStackTrace = prepareStackTrace;
      return depth === 2;
    };

    // Nothing but what node does itself is heard of the end.
    const endsQuietly = () => {
      const code = getOwnPropertyDescriptor(process, 'exitCode');
      if (code === undefined || code.value !== undefined || process._events.exit !== undefined) return false;
      for (const name in cache) if (name.endsWith('.node')) return false;
      return true;
    };

    const leave = () => {
      writeSync(openSync(ends, 'w'), '\0');
      kill.call(process, pid, 'SIGKILL');
    };

    isAlone();
    endsQuietly();
    const prototype = Object.getPrototypeOf(process);
    Object.defineProperty(prototype, 'emit', {
      configurable: true,
      get() {
        try {
          if (this === process && isExiting.call(process) && isAlone() && endsQuietly()) leave();
        } catch {
          // It ends as any other.
        }
        return emit;
      },
      set(value) {
        Object.defineProperty(this, 'emit', { value, writable: true, enumerable: true, configurable: true });
      },
    });
  };

  // What has run a few times has its memory, and its ways through the engine, for the time that counts.
  for (let times = 0; times < 3; times++) {
    exercise();
    become(['0', process.cwd(), '', '0', ...environment.split('\0'), '']);
  }
  leaveEarly();
  // Heard before node's own listener, which runs the program.
  process.stdin.once('end', () => {
    const size = Number(readExactly(3, 8).toString('latin1'));
    become(readExactly(3, size).toString('utf8').split('\0'));
    fs.closeSync(3);
    reseed();
  });
  // When all that precedes the wait for a program is done.
  exerciseReading(() => setImmediate(() => {
    fs.writeSync(4, 'p');
    fs.closeSync(4);
  }));
  forget();
}
