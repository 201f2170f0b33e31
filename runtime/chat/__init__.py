"""Conversations: chat templates rendered out of the process's way, and what messages add to a context."""

from runtime.chat.conversation import Conversation, Growth, Message, asks_for_answer, is_assistants, prepared
from runtime.chat.renderer import Renderer

__all__ = ["Conversation", "Growth", "Message", "Renderer", "asks_for_answer", "is_assistants", "prepared"]
