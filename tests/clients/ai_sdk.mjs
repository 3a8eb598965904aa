// One conversation by Vercel's AI SDK, told in JSON on its standard output: `node ai_sdk.mjs PROVIDER CASE URL KEY MODEL`.

import { generateText, Output, stepCountIs, streamText, tool } from 'ai';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { z } from 'zod';

globalThis.AI_SDK_LOG_WARNINGS = false;
const [provider, what, url, apiKey, name] = process.argv.slice(2);
const options = { baseURL: `${url}/v1`, apiKey };
const providers = {
  // Its default is the API of responses.
  openai: () => createOpenAI(options)(name),
  chat: () => createOpenAI(options).chat(name),
  compatible: () =>
    createOpenAICompatible({ name: 'backstop', supportsStructuredOutputs: true, includeUsage: true, ...options })(name),
  anthropic: () => createAnthropic(options)(name),
};
const asked = [];
const weather = tool({
  description: 'Tells the weather.',
  inputSchema: z.object({ city: z.string(), days: z.number().int() }),
  execute: async ({ city, days }) => {
    asked.push([city, days]);
    return { Paris: 'sunny', Rome: 'rainy' }[city];
  },
});
const pet = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('cat'), lives: z.number().int() }),
  z.object({ kind: z.literal('dog'), barks: z.boolean() }),
]);
const owner = z.object({ name: z.string(), age: z.number().int(), pet });
const common = { model: providers[provider](), maxRetries: 0 };
const turns = [];

// Each question goes out with all messages before it, as the SDK gives them.
async function converse(ask) {
  const answers = [];
  for (const question of ['Weather in Rome?', 'And in Paris?', 'Thanks']) {
    const messages = [...turns, { role: 'user', content: question }];
    const result = ask({ ...common, system: 'Be kind.', tools: { weather }, messages, stopWhen: stepCountIs(4) });
    const [text, reason, steps, usage, response] = await Promise.all(
      ['text', 'finishReason', 'steps', 'totalUsage', 'response'].map(async (key) => (await result)[key]),
    );
    const whole = usage.inputTokens + usage.outputTokens === usage.totalTokens;
    answers.push({ text, reason, steps: steps.length, whole });
    turns.push(messages.at(-1), ...response.messages);
  }
  return { answers, asked };
}

const cases = {
  ask: async () => (await generateText({ ...common, prompt: 'Once upon a time' })).text,
  loop: () => converse(generateText),
  stream: () =>
    converse((request) =>
      streamText({
        ...request,
        onError: ({ error }) => {
          throw error;
        },
      }),
    ),
  unkept: () =>
    converse((request) => generateText({ ...request, providerOptions: { openai: { store: false } } })),
  schema: async () => (await generateText({ ...common, output: Output.object({ schema: owner }), prompt: 'Whose pet?' })).output,
};
console.log(JSON.stringify(await cases[what]()));
