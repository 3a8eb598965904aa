"""Answers in the forms of the APIs, whole and as the events of a stream, of the parts that scripts have."""

import itertools
import json
import time


def pieces(text, size=7):
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


class Ids:
    counter = itertools.count(1)

    @classmethod
    def next(cls, prefix):
        return f"{prefix}{next(cls.counter):08x}"


def called(part):
    """The name and the arguments of a call, the latter as text."""
    given = part["arguments"]
    return part["call"], given if isinstance(given, str) else json.dumps(given)


# Anthropic


def messages_whole(parts, model):
    content, reason = [], "end_turn"
    for part in parts:
        if "reasoning" in part:
            content.append({"type": "thinking", "thinking": part["reasoning"], "signature": ""})
        elif "text" in part:
            content.append({"type": "text", "text": part["text"]})
        else:
            name, arguments = called(part)
            call = {"type": "tool_use", "id": Ids.next("toolu_"), "name": name, "input": json.loads(arguments)}
            content.append(call)
            reason = "tool_use"
    usage = {"input_tokens": 9, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 7}
    return {
        "id": Ids.next("msg_"), "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": reason, "stop_sequence": None, "usage": usage,
    }


def messages_stream(parts, model):
    whole = messages_whole(parts, model)
    start = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 0}}
    yield {"type": "message_start", "message": start}
    yield {"type": "ping"}
    for index, block in enumerate(whole["content"]):
        if block["type"] == "tool_use":
            empty, field, text = {**block, "input": {}}, "partial_json", json.dumps(block["input"])
            kind = "input_json_delta"
        else:
            field = block["type"]
            empty, text, kind = {**block, field: ""}, block[field], field + "_delta"
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for piece in pieces(text):
            yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, field: piece}}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": whole["usage"]}
    yield {"type": "message_stop"}


# OpenAI's chat

CHAT_USAGE = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}


def chat_message(parts):
    message = {"role": "assistant", "content": None, "refusal": None}
    for part in parts:
        if "reasoning" in part:
            message["reasoning_content"] = part["reasoning"]
        elif "text" in part:
            message["content"] = part["text"]
        else:
            name, arguments = called(part)
            call = {"id": Ids.next("call_"), "type": "function", "function": {"name": name, "arguments": arguments}}
            message.setdefault("tool_calls", []).append(call)
    return message


def chat_whole(parts, model):
    message = chat_message(parts)
    reason = "tool_calls" if "tool_calls" in message else "stop"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {
        "id": Ids.next("chatcmpl-"), "object": "chat.completion", "created": int(time.time()), "model": model,
        "choices": [choice], "usage": CHAT_USAGE,
    }


def chat_stream(parts, model, usage):
    whole = chat_whole(parts, model)
    choice = whole["choices"][0]
    shape = {**whole, "object": "chat.completion.chunk"}
    shape.pop("usage")

    def chunk(delta, finish=None):
        return {**shape, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    for field in ("reasoning_content", "content"):
        text = choice["message"].get(field)
        yield from (chunk({field: piece}) for piece in (pieces(text) if text else []))
    for index, call in enumerate(choice["message"].get("tool_calls", [])):
        text = call["function"]["arguments"]
        yield chunk({"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]})
        for piece in pieces(text):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, choice["finish_reason"])
    if usage:
        yield {**shape, "choices": [], "usage": CHAT_USAGE}


# OpenAI's responses


def offered(body):
    """A request's tools by name, each as (type, namespace): some stand in namespaces, some in items of the input."""
    items = body.get("input") if isinstance(body.get("input"), list) else []
    lists = [body.get("tools") or [], *(item.get("tools") or [] for item in items)]
    out = {}
    for tool in itertools.chain.from_iterable(lists):
        inner = tool["tools"] if tool["type"] == "namespace" else [tool]
        space = tool["name"] if tool["type"] == "namespace" else None
        out.update({one["name"]: (one["type"], space) for one in inner if "name" in one})
    return out


def response_items(parts, tools):
    for part in parts:
        if "reasoning" in part:
            content = [{"type": "reasoning_text", "text": part["reasoning"]}]
            yield {"type": "reasoning", "id": Ids.next("rs_"), "summary": [], "content": content}
        elif "text" in part:
            content = [{"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}]
            message = {"type": "message", "id": Ids.next("msg_"), "status": "completed", "role": "assistant"}
            yield {**message, "content": content}
        else:
            name, text = called(part)
            kind, space = tools.get(name, ("function", None))
            custom = kind == "custom"
            call = {"type": "custom_tool_call" if custom else "function_call", "status": "completed"}
            call |= {"id": Ids.next("ctc_" if custom else "fc_"), "call_id": Ids.next("call_"), "name": name}
            call |= {"namespace": space} if space else {}
            yield {**call, "input" if custom else "arguments": text}


def response_whole(parts, body):
    usage = {
        "input_tokens": 9, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 16,
    }
    return {
        "id": Ids.next("resp_"), "object": "response", "created_at": int(time.time()), "status": "completed",
        "model": body.get("model"), "output": list(response_items(parts, offered(body))), "error": None,
        "incomplete_details": None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage,
    }


def response_stream(parts, body):
    whole = response_whole(parts, body)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(whole["output"]):
        place = {"item_id": item["id"], "output_index": index}
        empty = {**item, "content": []} if "content" in item else dict(item)
        empty.update({field: "" for field in ("arguments", "input") if field in item})
        yield {"type": "response.output_item.added", "output_index": index, "item": {**empty, "status": "in_progress"}}
        if item["type"] == "function_call":
            name, text, end = "response.function_call_arguments", item["arguments"], {"arguments": item["arguments"]}
        elif item["type"] == "custom_tool_call":
            name, text, end = "response.custom_tool_call_input", item["input"], {"input": item["input"]}
        else:
            part = item["content"][0]
            place["content_index"] = 0
            yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
            name, text, end = f"response.{part['type']}", part["text"], {"text": part["text"]}
        for piece in pieces(text):
            yield {"type": f"{name}.delta", **place, "delta": piece}
        yield {"type": f"{name}.done", **place, **end}
        if "content_index" in place:
            yield {"type": "response.content_part.done", **place, "part": item["content"][0]}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": "response.completed", "response": whole}
