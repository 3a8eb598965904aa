// One question by Ollama's own package, its answer told in JSON on its standard output: `node ollama.mjs CASE URL KEY MODEL`.

import { Ollama } from 'ollama';

const [what, host, key, model] = process.argv.slice(2);
const api = new Ollama({ host, headers: { authorization: `Bearer ${key}` } });
const messages = [{ role: 'user', content: 'Once upon a time' }];
const cases = {
  chat: async () => (await api.chat({ model, messages })).message.content,
  stream: async () => {
    let text = '';
    for await (const part of await api.chat({ model, messages, stream: true })) text += part.message.content;
    return text;
  },
  generate: async () => (await api.generate({ model, prompt: 'Once upon a time' })).response,
  // What there is, what is loaded after a question, and after it was told to go.
  models: async () => {
    const names = async (list) => (await list).models.map((of) => of.name);
    const [there, shown] = [await names(api.list()), await api.show({ model })];
    await api.chat({ model, messages });
    const loaded = await names(api.ps());
    const { done_reason: reason } = await api.generate({ model, prompt: '', keep_alive: 0 });
    return { there, family: shown.details.family, loaded, reason, left: await names(api.ps()) };
  },
};
process.stdout.write(JSON.stringify(await cases[what]()));
