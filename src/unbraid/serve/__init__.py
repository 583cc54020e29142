"""Servers on this machine, and who talks to them: a run by vLLM or in this process, a retriever, the terminal chat."""

from unbraid.serve.chat import ChatSettings, chat
from unbraid.serve.openai import openai_app, serve_local
from unbraid.serve.retriever import retriever_app, serve_retriever
from unbraid.serve.run_flags import ServePlan, serve_flags

__all__ = [
    "ChatSettings",
    "ServePlan",
    "chat",
    "openai_app",
    "retriever_app",
    "serve_flags",
    "serve_local",
    "serve_retriever",
]
