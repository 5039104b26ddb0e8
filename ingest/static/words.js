// Figures in words, and elements with text in them.
"use strict";

const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");
const number = (value, digits = 0) => value.toLocaleString("en-US", { maximumFractionDigits: digits });
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

// Three digits that count: 0.42, 1.8, 37, 1,240, 52.3k.
function short(value) {
  if (value >= 999500) return `${number(value / 1e6, 2)}M`;
  if (value >= 9995) return `${number(value / 1e3, value < 99950 ? 1 : 0)}k`;
  return number(value, value >= 99.5 ? 0 : value >= 9.95 ? 1 : 2);
}

const duration = (ms) => (ms >= 1000 ? `${short(ms / 1000)} s` : `${short(ms)} ms`);
const percent = (value) => `${short(value)} %`;

function age(seconds) {
  if (seconds < 60) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
function roundAge(seconds) {
  if (seconds < 120) return `${number(seconds, 1)} s`;
  return seconds < 7200 ? `${number(seconds / 60, 1)} min` : `${number(seconds / 3600, 1)} h`;
}

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// Only what changed is put in: a screen reader reads out what is.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
