// What a program over @google/genai sees of a server, as one JSON object on standard output.
//
//     node javascript_client.mjs PACKAGE BASE_URL API_VERSION API_KEY MODEL FOLDER
//
// Runs in the folder that PACKAGE is installed in. It judges nothing: the test that starts it does.

import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [name, baseUrl, apiVersion, apiKey, model, folder] = process.argv.slice(2);
const { GoogleGenAI } = createRequire(`${process.cwd()}/`)(name);

const TEXTS = [0, 1, 2, 3, 4].map((n) => `text ${n}`);
const DIMS = 16;
const LONG_ROWS = 8000;
const DEADLINE_MS = 60000;
const DONE = ['SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED'].map((word) => `JOB_STATE_${word}`);

const connect = (key) => new GoogleGenAI({ apiKey: key, httpOptions: { baseUrl, apiVersion } });
const ai = connect(apiKey);
const jsonl = { mimeType: 'application/jsonl' };

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return { kind: error.name, code: error.status, message: error.message };
  }
  return { kind: 'none' };
}

async function all(pager) {
  const found = [];
  for await (const one of await pager) found.push(one);
  return found;
}

async function finished(job) {
  const deadline = Date.now() + DEADLINE_MS;
  while (!DONE.includes(job.state)) {
    if (Date.now() > deadline) throw new Error(`${job.name} is still ${job.state}`);
    await new Promise((wake) => setTimeout(wake, 20));
    job = await ai.batches.get({ name: job.name });
  }
  return job;
}

const row = (key, text, config) => ({
  key,
  request: { content: { parts: [{ text }] }, ...config },
});

function write(file, rows) {
  const path = join(folder, file);
  writeFileSync(path, rows.map((one) => JSON.stringify(one) + '\n').join(''));
  return path;
}

const upload = (path, config) => ai.files.upload({ file: path, config: { ...jsonl, ...config } });

const inline = () => ({
  inlinedRequests: {
    contents: TEXTS,
    config: { outputDimensionality: DIMS, taskType: 'CLUSTERING' },
  },
});

const create = (src, displayName, called = model) =>
  ai.batches.createEmbeddings({
    model: called,
    src,
    config: displayName === undefined ? undefined : { displayName },
  });

async function models() {
  const found = await ai.models.get({ model });
  return {
    listed: (await all(ai.models.list())).map((one) => one.name),
    paged: (await all(ai.models.list({ config: { pageSize: 1 } }))).map((one) => one.name),
    name: found.name,
    input_token_limit: found.inputTokenLimit,
    unknown: await refusal(() => ai.models.get({ model: 'no-such-model' })),
  };
}

async function now() {
  const embed = (contents, config, called = model) =>
    ai.models.embedContent({ model: called, contents, config });
  const config = { outputDimensionality: DIMS, taskType: 'RETRIEVAL_QUERY' };
  return {
    one: (await embed('x', config)).embeddings.map((found) => found.values),
    many: (await embed(TEXTS)).embeddings.map((found) => found.values),
    merged: (await embed(['a', 'b'], undefined, 'gemini-embedding-2')).embeddings.length,
    tokens: (await ai.models.countTokens({ model, contents: 'hello world' })).totalTokens,
    too_many: await refusal(() => embed(Array(101).fill('x'))),
    too_wide: await refusal(() => embed('x', { outputDimensionality: 100000 })),
    unknown: await refusal(() => embed('x', undefined, 'no-such-model')),
  };
}

async function files() {
  const path = join(folder, 'big-js.jsonl');
  writeFileSync(path, '0123456789abcde\n'.repeat(600000));
  const big = await upload(path, { displayName: 'big' });
  const got = await ai.files.get({ name: big.name });
  const named = await ai.files.upload({
    file: new Blob(['{}\n']),
    config: { mimeType: 'text/plain', name: 'my-own-id-js' },
  });
  const listed = (await all(ai.files.list({ config: { pageSize: 1 } }))).map((one) => one.name);
  await ai.files.delete({ name: big.name });
  await ai.files.delete({ name: named.name });
  return {
    big,
    got,
    named: named.name,
    listed,
    left: (await all(ai.files.list())).map((one) => one.name),
    gone: await refusal(() => ai.files.get({ name: big.name })),
  };
}

async function inline_batch() {
  const job = await finished(await create(inline(), 'inline'));
  const unnamed = await finished(await create(inline()));
  return {
    name: job.name,
    state: job.state,
    display_name: job.displayName,
    model: job.model,
    values: job.dest.inlinedEmbedContentResponses.map((item) => item.response.embedding.values),
    unnamed: unnamed.state,
  };
}

async function file_batch() {
  const rows = TEXTS.map((text, n) => row(`k${n}`, text, { output_dimensionality: DIMS }));
  rows.push(row('empty', '', { output_dimensionality: DIMS }));
  const file = await upload(write('rows-js.jsonl', rows));
  const job = await finished(await create({ fileName: file.name }, 'file'));
  const downloadPath = join(folder, 'results-js.jsonl');
  await ai.files.download({ file: job.dest.fileName, downloadPath });
  const lines = readFileSync(downloadPath, 'utf8').trimEnd().split('\n').map((line) => JSON.parse(line));
  await ai.batches.delete({ name: job.name });
  return { name: job.name, state: job.state, result_file: job.dest.fileName, lines };
}

async function refused_batches() {
  const before = (await all(ai.batches.list())).length;
  const bad = await upload(write('bad-js.jsonl', [row('a', 'a'), { content: 'b' }]));
  const facts = {
    bad_row: await refusal(() => create({ fileName: bad.name }, 'bad')),
    no_file: await refusal(() => create({ fileName: 'files/abcdefghijkl' }, 'none')),
    no_model: await refusal(() => create(inline(), 'x', 'no-such-model')),
    long_name: await refusal(() => create(inline(), 'n'.repeat(513))),
  };
  facts.made = (await all(ai.batches.list())).length - before;
  return facts;
}

async function list_cancel_delete() {
  const rows = Array.from({ length: LONG_ROWS }, (_, n) => row(String(n), `text ${n}`));
  const file = await upload(write('long-js.jsonl', rows));
  const long = await create({ fileName: file.name }, 'long');
  const names = [];
  for (let n = 0; n < 4; n += 1) names.push((await create(inline(), `job-${n}`)).name);
  const listed = await all(ai.batches.list({ config: { pageSize: 2 } }));
  await ai.batches.cancel({ name: long.name });
  const ended = await finished(await ai.batches.get({ name: long.name }));
  const after = [];
  for (const one of names) after.push((await finished(await ai.batches.get({ name: one }))).state);
  await ai.batches.cancel({ name: names[0] });
  await ai.batches.delete({ name: long.name });
  await ai.batches.delete({ name: names[0] });
  const made = [long.name, ...names];
  const left = (await all(ai.batches.list())).map((job) => job.name);
  return {
    made,
    listed: listed.map((job) => job.name),
    cancelled: ended.state,
    after,
    left: left.filter((one) => made.includes(one)),
    gone: await refusal(() => ai.batches.get({ name: long.name })),
    deleted_twice: await refusal(() => ai.batches.delete({ name: long.name })),
  };
}

const facts = {};
for (const part of [
  models, now, files, inline_batch, file_batch, refused_batches, list_cancel_delete,
]) {
  facts[part.name] = await part();
}
facts.wrong_key = await refusal(() => all(connect('wrong').models.list()));
console.log(JSON.stringify(facts));
