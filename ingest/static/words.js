// Texts in the reader's language, figures in words, and elements with text in them.
"use strict";

const LANGUAGE_KEY = "persistence-language";
const language = localStorage.getItem(LANGUAGE_KEY) ?? (navigator.language.startsWith("zh") ? "zh" : "en");

function t(key, values = {}) {
  return STRINGS[language][key].replace(/{(\w+)}/g, (_, name) => values[name] ?? "–");
}

// --- figures ---

const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");
const utc = (at) => `${new Date(at * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
const number = (value, digits = 0) => value.toLocaleString("en-US", { maximumFractionDigits: digits });
const records = (count) => `${short(count)} ${t(count === 1 ? "unit.record" : "unit.records")}`;

// "UTC+8, Asia/Shanghai"
function zone() {
  const minutes = -new Date().getTimezoneOffset();
  const hours = `${Math.floor(Math.abs(minutes) / 60)}${minutes % 60 ? `:${Math.abs(minutes % 60)}` : ""}`;
  const name = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return minutes ? `UTC${minutes < 0 ? "−" : "+"}${hours}, ${name}` : "UTC";
}

// Three digits that count: 0.42, 1.8, 37, 1,240, 52.3k.
function short(value) {
  if (value >= 999500) return `${number(value / 1e6, 2)}M`;
  if (value >= 9995) return `${number(value / 1e3, value < 99950 ? 1 : 0)}k`;
  return number(value, value >= 99.5 ? 0 : value >= 9.95 ? 1 : 2);
}

const duration = (ms) => (ms >= 1000 ? `${short(ms / 1000)} s` : `${short(ms)} ms`);
const percent = (value) => `${short(value)} %`;
const perSecond = (value) => (value == null ? null : t("unit.perSecond", { value: short(value) }));

function age(seconds) {
  if (seconds < 60) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d`;
}

function roundAge(seconds) {
  if (seconds < 120) return `${number(seconds, 1)} s`;
  return seconds < 7200 ? `${number(seconds / 60, 1)} min` : `${number(seconds / 3600, 1)} h`;
}

// --- elements ---

const get = (id) => document.getElementById(id);

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// A moment by the reader's clock, with its date where that is another day; the tooltip has UTC.
function time(at) {
  const element = make("time", "", clock(at));
  const date = new Date(at * 1000);
  if (date.toDateString() !== new Date().toDateString()) element.prepend(`${date.toLocaleDateString("en-CA")} `);
  element.dateTime = date.toISOString();
  element.title = utc(at);
  return element;
}

// Only what changed is put in: a screen reader reads out what is.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-t]")) setText(element, t(element.dataset.t));
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = t(element.dataset.label);
  get("language").lang = language === "zh" ? "en" : "zh-CN";
}
