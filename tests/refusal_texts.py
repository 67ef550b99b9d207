"""Refusals as models write them, and captions that come near to one; written for these tests."""

REFUSALS = """\
I'm sorry, but I can't assist with that request.
I’m sorry, I can’t help with identifying people in images.
Sorry, but I cannot provide a description of this image.
I'm unable to view images directly.
I am not able to see the image you are referring to.
As an AI language model, I don't have the ability to see images.
I'm just an AI, I cannot view pictures.
Unfortunately, I cannot describe the content of this image.
I cannot fulfill this request.
I can't identify the person in the photo, but he wears a hat.
It seems that you haven't attached an image. Please upload it.
It looks like there is no image attached to your message.
No image was provided. Please share the image you would like described.
Please provide the image you'd like me to caption.
I apologize, but I am unable to generate a caption for this image.
My apologies, but the image cannot be displayed.
I don't see any image attached. Could you upload it again?
I do not have access to the image.
Thank you for sharing the image. Unfortunately, I'm not able to discuss its content.
Hello! I'd be happy to help, but I can't see the image.
I won't be able to describe this content as it is explicit.
I must decline to describe this image.
This image contains explicit content, which I cannot describe.
I'm sorry.
I cannot comply with your request because it is against my guidelines.
I can’t create captions for sexual content.
I do not feel comfortable describing this image.
I cannot and will not provide a description of the image.
As a text-based model, I cannot process pictures.
I'm sorry, I don't know who this is.
I can't answer questions about the identity of people.
I'm not comfortable describing this image.
I'm sorry, but as an AI I can't do this.
Apologies for the confusion, but I can't see pictures.
I'd be happy to describe the image, but it did not load.
The image could not be loaded.
Could you please provide the image?
I can't provide assistance with that.
I cannot see images, but I can help you with text.
I'm an AI assistant and can't view files.
I don't have enough information to describe the video.
很抱歉，我无法识别图片中的人物。
对不起，我不能提供该图片的描述。
抱歉，作为一个AI语言模型，我无法查看图片。
作为人工智能助手，我不能看到图像。
我无法查看或描述图片内容。
我看不到您上传的图片。
您似乎没有上传图片，请重新上传。
请提供图片，以便我为您描述。
非常抱歉，但我不能满足您的请求。
很抱歉，我無法辨識圖片中的人物。
我是一个语言模型，无法直接看图。
抱歉，我暂时无法回答这个问题。
您好，我无法描述这张图片。
我不能帮助您完成这个请求。
感谢您的提问。很遗憾，我无法处理图像。
Es tut mir leid, aber ich kann dieses Bild nicht beschreiben.
Tut mir leid, ich kann dabei nicht helfen.
Leider kann ich das Bild nicht sehen.
Ich kann keine Bilder sehen oder analysieren.
Ich bin nicht in der Lage, Personen zu identifizieren.
Als KI-Sprachmodell kann ich keine Bilder anzeigen.
Entschuldigung, aber ich kann diese Anfrage nicht erfüllen.
Es wurde kein Bild hochgeladen.
Bitte laden Sie das Bild hoch.
Dabei kann ich leider nicht weiterhelfen.
Ich sehe kein Bild in Ihrer Nachricht.
Je suis désolé, mais je ne peux pas décrire cette image.
Désolée, je ne peux pas vous aider avec cette demande.
Je ne suis pas en mesure de voir les images.
En tant qu'intelligence artificielle, je ne peux pas voir d'images.
Malheureusement, je ne peux pas identifier la personne.
Je ne vois pas d'image jointe.
Veuillez fournir l'image à décrire.
Je ne peux malheureusement pas répondre à cette demande.
Je n'ai pas accès à l'image.
Lo siento, pero no puedo ayudar con esa solicitud.
Lo siento, no puedo describir la imagen.
No puedo ver imágenes.
Como modelo de lenguaje, no tengo la capacidad de ver imágenes.
Lamentablemente, no puedo identificar a la persona.
No puedo proporcionar una descripción de esta imagen.
No veo ninguna imagen adjunta.
Por favor, sube la imagen que quieres que describa.
No tengo acceso a la imagen.
Disculpa, no me es posible responder.
申し訳ありませんが、この画像の説明はできません。
申し訳ございません。画像を確認することができません。
すみませんが、その質問にはお答えできません。
私はAIアシスタントなので、画像を見ることができません。
画像を見ることができません。
画像が添付されていません。
その人物を特定することはできません。
ご要望にお応えできません。
お手伝いできません。
残念ながら、画像の内容を説明することはできません。
Извините, но я не могу описать это изображение.
К сожалению, я не могу помочь с этим запросом.
Я не могу видеть изображения.
Как языковая модель, я не могу просматривать изображения.
Простите, я не вижу изображения.
Я не вижу изображения.
Пожалуйста, загрузите изображение.
Я не могу предоставить описание.
Мне очень жаль, но я не в состоянии это сделать.
У меня нет доступа к изображению.
Desculpe, mas não posso ajudar com isso.
Não consigo ver imagens.
Mi dispiace, ma non posso descrivere l'immagine.
Non sono in grado di vedere le immagini.
죄송하지만 이미지를 설명할 수 없습니다.
저는 AI 언어 모델로서 이미지를 볼 수 없습니다.
이미지를 볼 수 없습니다.
I'm really sorry, but I'm not able to help with that.
I can't see the picture you mention, but if you describe it I can help.
I am unable to determine the identity of the individuals shown.
I will not describe this image.
Sorry, I can't do that.
I don't have access to any image, could you attach it?
I do not have the capability to process visual content.
I’m unable to provide a detailed description since no image is attached.
Since I cannot view the image directly, I can only guess.
The provided image appears to be blank, so I can't describe it.
It appears the image didn't upload correctly.
You haven't provided an image for me to describe.
I need to see the image in order to describe it.
I must respectfully decline to caption this image.
As a language model, I can only process text.
Unfortunately I can't make out who is in this picture.
I cannot make assumptions about people's identity.
This request goes against my guidelines.
I can't engage with this content.
I'm not able to identify real people based on their appearance.
I apologize for the inconvenience, but it seems there is an issue with the image.
Sorry, the image you provided is not visible to me.
I'm afraid that I cannot describe the photograph.
I'm unable to comply.
Apologies, I can't assist.
I cannot generate a caption without an image.
I can’t comment on the people in this photo.
I would need the image to describe it.
I can't fulfil that request.
对不起，我无法满足这个要求。
抱歉，我看不到图片。
我无法提供有关真实人物身份的信息。
由于没有图片，我无法进行描述。
不好意思，这个问题我回答不了。
我是AI助手，无法查看图像。
抱歉，这张图片的内容不适合描述。
您没有提供任何图片。
我不能生成包含色情内容的描述。
对不起，我不能协助处理该请求。
Ich kann Ihnen bei dieser Anfrage leider nicht helfen.
Ich darf keine Personen auf Bildern identifizieren.
Leider habe ich keinen Zugriff auf das Bild.
Als künstliche Intelligenz kann ich das Foto nicht sehen.
Es tut mir leid, das kann ich nicht tun.
Es scheint, dass kein Bild angehängt wurde.
Ohne Bild kann ich keine Beschreibung liefern.
Je regrette, mais je ne peux pas accéder à cette image.
Désolé, je ne peux pas faire cela.
Je suis un modèle de langage et je ne peux pas voir les photos.
Il semble qu'aucune image n'ait été jointe.
Je ne suis pas autorisé à identifier des personnes.
Pourriez-vous me fournir l'image ?
No puedo cumplir con esta solicitud.
Lo siento, pero como IA no puedo ver fotos.
Parece que no has adjuntado ninguna imagen.
No estoy autorizado para identificar personas.
Perdón, pero no puedo hacer eso.
Soy un modelo de lenguaje y no puedo ver imágenes.
申し訳ありませんが、そのリクエストにはお応えできません。
画像の内容を確認できないため、説明できません。
すみません、画像が表示されていません。
この画像についてはお答えできません。
AIとして、実在の人物を特定することはできません。
К сожалению, изображение не загрузилось.
Я не могу помочь вам с этим.
Извините, я не могу это сделать.
Я всего лишь языковая модель и не вижу картинок.
Вы не прикрепили изображение.
Простите, но этот запрос нарушает правила.
I'm not able to provide a caption for that photo.
I can't generate content that sexualizes people.
Sorry, this image can't be described.
I'm sorry. I am not able to help you with this one.
I do not see an image in your message.
I cannot access external links or images.
It looks like you forgot to attach the image!
Please attach the picture so that I can describe it.
There doesn't seem to be an image here.
I don't feel comfortable continuing this conversation.
I am not programmed to describe images.
I couldn't process the image you sent.
I won't provide details about this person.
Unfortunately, no image has been shared with me.
I'm sorry, but the video could not be processed.
As an artificial intelligence, I can't look at photographs.
I have to refuse this request.
I can not describe what is in this picture.
This content violates our policy, so it can't be described.
My apologies, I can't see what's in the photo.
抱歉，我没有看到任何图片。
我不便对这张图片发表评论。
很遗憾，我不能识别真实人物。
作为AI，我没有视觉能力。
对不起，您的请求违反了使用政策。
我暂时没法处理这张照片。
请您重新上传图片。
Leider kann ich diese Person nicht identifizieren.
Ich kann dieses Bild leider nicht öffnen.
Es tut mir leid, aber dabei kann ich nicht helfen.
Ich habe leider keinen Zugriff auf Bilder.
Je suis navré, je ne peux pas traiter cette image.
Je ne peux pas vous fournir de description de cette photo.
Je ne dispose pas de la capacité de voir des images.
No me es posible ver la imagen.
Lo lamento, no puedo identificar personas reales.
No puedo ayudarte con eso.
Desafortunadamente, no tengo acceso a la imagen.
申し訳ございませんが、個人を特定することはいたしかねます。
私は画像を見ることができません。
К сожалению, я не вижу вашего изображения.
Извините, я не могу обсуждать это.
Я не способен видеть картинки.
Прошу прощения, но я не могу выполнить ваш запрос.
""".splitlines()

CAPTIONS = """\
A sign reads: I'm sorry, we are closed
I'm sorry, we are closed
Sorry, we're closed
Sorry we missed you card on a door
a person who cannot see walks with a dog
I can't help falling in love with you, lyrics on a mug
I cannot wait to see you
I can't wait to see the pictures from our trip
I can't believe it's not butter
I can't help but smile at this picture
As an actor, he appears on a stage
An AI generated picture of a fox
AI robot holding a flower
As an art student she paints
I can't describe how happy I am
I can't see the forest for the trees
I don't care t-shirt
I do not like green eggs and ham
Unfortunately, the bridge was destroyed in 1945
No photo available in the background, a wall
No image of the queen hangs in the hall
The image was loaded with bright colours
The image was provided by NASA and shows Saturn
The image is not in focus, a dog runs
Please share the road sign at a crossing
Please send help written in the sand
There is no image on the blank wall
The picture cannot be seen clearly because of fog; a ship
I am not able to walk, says the man in the comic
Please do not feed the ducks, a sign by a pond
Here I am, unable to fly: a penguin
But I can't reach it! says a cat in a cartoon
I am an artist, reads a badge
I can see the sea from here
You can't park here, a sign says
A screenshot of a chat in which an assistant says: I'm sorry, I can't help with that
The video shows a man who can't open the door
Sorry! The lifestyle you ordered is out of stock
抱歉，我们已经打烊了，门上的牌子写着
一个不能走路的人坐在轮椅上
我不能没有你的音乐专辑封面
一位盲人无法看到路，用手杖行走
图片中有一只猫，看不到尾巴
请提供身份证的告示牌
对不起，我爱你电影海报
Ein Schild sagt: Es tut mir leid, wir haben geschlossen
Ein Mann, der nicht sehen kann, mit einem Hund
Leider geschlossen, ein Schild an der Tür
Ich kann nicht ohne dich leben
Ich bin ein Berliner, steht auf dem Plakat
Als Kind spielte er hier
Als Kinder noch spielten
Je ne regrette rien
Je ne suis pas Charlie, une pancarte
Désolé, nous sommes fermés
Je suis une star, un t-shirt
No puedo vivir sin ti
Lo siento, estamos cerrados
Como una rosa en el jardín
No se puede pasar, un cartel
申し訳ありません、本日は閉店しましたと書かれた看板
画像には猫が写っています
写真を撮ることができる展望台
この写真には二人の人物が写っています
Извините, мы закрыты
Я не могу без тебя
Как красиво в горах
Изображение собаки, которая не может бежать
Как языковая школа выглядит
죄송합니다 오늘은 휴무입니다
이미지에는 고양이가 있습니다
이 사진에는 두 사람이 있습니다
""".splitlines()
