"""The `anthropic` package, sync and async, against a running server."""

import unittest

import anthropic
from support import KEY, QUESTION, Async, Server


def setUpModule():
    global server
    server = Server("--alias", "claude-sonnet-4-5")


def tearDownModule():
    assert server.stop() == 0


def client(key=KEY):
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)


def ask(api, method="create", **options):
    # The package has no `temperature` any more; the API here does.
    body = {"temperature": 0, **options.pop("extra_body", {})}
    call = getattr(api.messages, method)
    return call(**{"model": "stories", "max_tokens": 24, "messages": QUESTION, "extra_body": body, **options})


class Messages(unittest.TestCase):
    def test_whole(self):
        answer = ask(client())
        self.assertEqual((answer.type, answer.role, answer.model), ("message", "assistant", "stories"))
        self.assertEqual([block.type for block in answer.content], ["text"])
        self.assertEqual((answer.stop_reason, answer.stop_sequence), ("max_tokens", None))
        self.assertEqual(answer.usage.output_tokens, 24)
        self.assertTrue(answer._request_id.startswith("req_"))

    def test_events(self):
        whole = ask(client()).content[0].text
        events = list(ask(client(), stream=True))
        kinds = [event.type for event in events if event.type != "ping"]
        self.assertEqual(kinds[:3], ["message_start", "content_block_start", "content_block_delta"])
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(set(kinds[2:-3]), {"content_block_delta"})
        text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
        self.assertEqual(text, whole)
        start, delta = events[0], events[-2]
        self.assertEqual((start.message.content, start.message.stop_reason), ([], None))
        self.assertEqual((delta.delta.stop_reason, delta.usage.output_tokens), ("max_tokens", 24))

    def test_cached_tokens(self):
        question = [{"role": "user", "content": "Tell me of the blue dragon and his nine little friends. " * 8}]
        first = ask(client(), messages=question).usage
        total = first.input_tokens + first.cache_read_input_tokens
        again = ask(client(), messages=question).usage
        # All but the last token were, and are told in whole pages of 64.
        told = (total - 1) // 64 * 64
        self.assertGreater(told, 0)
        self.assertEqual((again.input_tokens, again.cache_read_input_tokens), (total - told, told))

    def test_stream_helper(self):
        with ask(client(), method="stream") as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(final.content[0].text, text)
        self.assertEqual(text, ask(client()).content[0].text)

    def test_stop_sequences(self):
        whole = ask(client()).content[0].text
        word = whole.split()[4]
        answer = ask(client(), stop_sequences=["@", word])
        self.assertEqual((answer.stop_reason, answer.stop_sequence), ("stop_sequence", word))
        self.assertEqual(answer.content[0].text, whole[: whole.index(word)])

    def test_blocks(self):
        blocks = [{"type": "text", "text": "Once upon", "cache_control": {"type": "ephemeral"}}]
        blocks = [{"role": "user", "content": blocks}, {"role": "user", "content": "a time"}]
        joined = [{"role": "user", "content": "Once upon\na time"}]
        count = client().messages.count_tokens(model="stories", messages=blocks).input_tokens
        self.assertEqual(count, client().messages.count_tokens(model="stories", messages=joined).input_tokens)
        self.assertEqual(ask(client(), messages=blocks).content, ask(client(), messages=joined).content)

    def test_an_answer_that_has_begun(self):
        whole = ask(client()).content[0].text
        begun = whole[: whole.index(" ", 20)]
        rest = ask(client(), messages=[*QUESTION, {"role": "assistant", "content": begun}], max_tokens=8)
        self.assertTrue(whole.startswith(begun + rest.content[0].text), (whole, begun, rest.content))

    def test_count(self):
        count = client().messages.count_tokens(model="claude-sonnet-4-5", messages=QUESTION)
        usage = ask(client()).usage
        self.assertEqual(count.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)

    def test_errors(self):
        with self.assertRaises(anthropic.NotFoundError) as caught:
            ask(client(), model="claude-0")
        self.assertEqual(caught.exception.body["error"]["type"], "not_found_error")
        with self.assertRaises(anthropic.BadRequestError) as caught:
            ask(client(), extra_body={"top_k": -2})
        self.assertEqual(caught.exception.body["type"], "error")
        self.assertIn("top_k", caught.exception.body["error"]["message"])
        for wrong in ({"thinking": {"type": "sometimes"}}, {"tool_choice": {"type": "any"}}):
            with self.assertRaises(anthropic.BadRequestError):
                ask(client(), **wrong)

    def test_hints_are_taken(self):
        whole = ask(client()).content
        thinking = {"type": "enabled", "budget_tokens": 1024}
        body = {"top_k": -1, "context_management": {"edits": []}, "speed": "fast"}
        self.assertEqual(ask(client(), system="Be brief.", thinking=thinking, extra_body=body).content, whole)
        raw = client().messages.with_raw_response.create(
            model="stories", messages=QUESTION, max_tokens=4, extra_body={**body, "colour": "red"})
        self.assertEqual(raw.headers["x-backstop-ignored"], "context_management, speed, colour")

    def test_a_thread_is_refused_in_the_form_that_the_package_knows(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            ask(client(), extra_body={"thread": {"type": "create"}})
        details = caught.exception.body["error"]["details"]
        self.assertEqual(details, {"error_code": "thread_unsupported_request", "unsupported": ["thread"]})
        with self.assertRaises(anthropic.AuthenticationError):
            ask(client(key="open"))

    def test_models(self):
        self.assertEqual([model.id for model in client().models.list()], ["stories", "claude-sonnet-4-5"])
        self.assertEqual(client().models.retrieve("stories").display_name, "stories")


class AsyncMessages(Async):
    async def test_whole_and_streamed(self):
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY, max_retries=0) as api:
            whole = (await ask(api)).content[0].text
            async with ask(api, method="stream") as stream:
                text = "".join([piece async for piece in stream.text_stream])
            self.assertEqual(text, whole)


if __name__ == "__main__":
    unittest.main()
