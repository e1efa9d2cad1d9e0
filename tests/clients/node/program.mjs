// Clients of the Node world, one JSON line per check: program.mjs URL KEY
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI } from "@langchain/openai";
import { generateText, streamText } from "ai";
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const provider = createOpenAICompatible({ name: "airi", baseURL, apiKey, includeUsage: true });
const langchain = new ChatOpenAI({ model: "tiny", apiKey, temperature: 0, maxRetries: 0, configuration: { baseURL } });
const ask = { model: "tiny", messages: [{ role: "user", content: "Hello!" }], temperature: 0 };

const expected = (await client.chat.completions.create(ask)).choices[0].message.content;
assert.ok(expected);

const checks = {
  async openai_chat() {
    const done = await client.chat.completions.create(ask);
    assert.equal(done.choices[0].finish_reason, "stop");
    assert.equal(done.usage.total_tokens, done.usage.prompt_tokens + done.usage.completion_tokens);
  },
  async openai_stream() {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
      text += chunk.choices[0].delta.content ?? "";
    }
    assert.equal(text, expected);
  },
  async openai_stream_helper() {
    const final = await client.chat.completions.stream(ask).finalChatCompletion();
    assert.equal(final.choices[0].message.content, expected);
  },
  async openai_abort() {
    const abort = new AbortController();
    const body = { ...ask, max_tokens: 900, ignore_eos: true, stream: true };
    let chunks = 0;
    for await (const _ of await client.chat.completions.create(body, { signal: abort.signal })) {
      if (++chunks === 3) abort.abort();
    }
    assert.ok(chunks < 900);
    assert.equal((await client.chat.completions.create(ask)).choices[0].message.content, expected);
  },
  async openai_models() {
    assert.deepEqual((await client.models.list()).data.map((model) => model.id).sort(), ["airi-demo", "embedder", "tiny"]);
  },
  async openai_errors() {
    await assert.rejects(client.chat.completions.create({ ...ask, temperature: -1 }), OpenAI.BadRequestError);
    await assert.rejects(client.chat.completions.create({ ...ask, model: "nope" }), OpenAI.NotFoundError);
    await assert.rejects(client.withOptions({ apiKey: "no" }).models.list(), OpenAI.AuthenticationError);
  },
  async ai_sdk_generate_text() {
    const done = await generateText({ model: provider("tiny"), prompt: "Hello!", temperature: 0 });
    assert.equal(done.text, expected);
    assert.equal(done.finishReason, "stop");
    assert.ok(done.usage.outputTokens > 1);
  },
  async ai_sdk_stream_text() {
    const result = streamText({ model: provider("tiny"), prompt: "Hello!", temperature: 0 });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    assert.equal(text, expected);
    assert.equal(await result.finishReason, "stop");
    assert.ok((await result.usage).inputTokens > 1);
  },
  async ai_sdk_completion_model() {
    const done = await generateText({ model: provider.completionModel("tiny"), prompt: "Hello", maxOutputTokens: 4 });
    assert.equal(done.usage.outputTokens, 4);
  },
  async langchain_invoke() {
    const done = await langchain.invoke("Hello!");
    assert.equal(done.content, expected);
    assert.ok(done.usage_metadata.output_tokens > 1);
  },
  async langchain_stream() {
    let text = "";
    for await (const chunk of await langchain.stream("Hello!")) text += chunk.content;
    assert.equal(text, expected);
  },
};

for (const [check, body] of Object.entries(checks)) {
  let error = null;
  try {
    await body();
  } catch (problem) {
    error = problem.stack ?? String(problem);
  }
  console.log(JSON.stringify({ check, error }));
}
