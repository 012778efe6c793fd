'use strict';
// What `node -` requires before it reads its program from standard input: it stays here until there is one, and goes on
// as node itself does.
//
//   agent <- fd 4   one byte: it is parked, reading fd 3
//   agent -> fd 3   8 digits, the length of what follows; fields, each ended by a zero byte:
//                   merge, cwd, main (unused), count of arguments, the arguments, then NAME=value
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
  const v8 = require('v8');
  const vm = require('vm');

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
  };

  // The first number that Math.random gives has V8 seed the context: from entropy that was drawn when the process began,
  // which all clones of a machine share, unless a seed is given. So it is given one, and none to those that come later.
  const reseed = () => {
    const fd = fs.openSync('/dev/urandom', 'r');
    const entropy = readExactly(fd, 6);
    fs.closeSync(fd);
    v8.setFlagsFromString(`--random-seed=${entropy.readInt32LE(0) || 1}`);
    for (let skipped = entropy.readUInt16LE(4) % 1024; skipped >= 0; skipped--) Math.random();
    v8.setFlagsFromString('--random-seed=0');
  };

  const become = (fields) => {
    const [merge, cwd, , count] = fields;
    const rest = fields.slice(4, -1);
    if (merge === '1') {
      // The lowest free number is given to what is opened next.
      fs.closeSync(2);
      fs.openSync('/proc/self/fd/1', 'w');
    }
    process.chdir(cwd);
    for (const name of Object.keys(process.env)) delete process.env[name];
    for (const pair of rest.slice(Number(count))) {
      const at = pair.indexOf('=');
      process.env[pair.slice(0, at)] = pair.slice(at + 1);
    }
    process.argv.push(...rest.slice(0, Number(count)));
  };

  exercise();
  fs.writeSync(4, 'p');
  fs.closeSync(4);
  const size = Number(readExactly(3, 8).toString('latin1'));
  become(readExactly(3, size).toString('utf8').split('\0'));
  fs.closeSync(3);
  reseed();
  forget();
}
